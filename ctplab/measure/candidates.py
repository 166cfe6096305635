"""Which hard prompt helps most: every candidate against no prompt, on the same validation windows."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ctplab.compress.checkpoint import write_json
from ctplab.errors import InputError
from ctplab.measure.perplexity import window_nll
from ctplab.measure.stats import Interval
from ctplab.models import Model, Tokenizer, check_context, tensor_fingerprint
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.kv import Arm


@dataclass(frozen=True)
class Candidate:
    """A hard prompt and what it is worth."""

    text: str
    k: int
    """Tokens."""
    nll: float
    """Nats a target token."""
    difference: Interval
    """NLL a token minus that of no prompt, paired over windows, with its 95% interval; below 0 it helps."""


def paired_difference(nll: Tensor, plain: Tensor, targets: int, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean NLL a token of one arm minus another's: (N,) summed NLL of the same windows of ``targets`` tokens each.

    The 95% interval comes from windows drawn with replacement.
    """
    gaps = (nll.double() - plain.double()) / targets
    picks = torch.randint(len(gaps), (draws, len(gaps)), generator=torch.Generator().manual_seed(seed))
    low, high = gaps[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(gaps.mean()), low, high)


def rank(
    model: Model,
    tokenizer: Tokenizer,
    texts: list[str],
    windows: Tensor,
    *,
    kept: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Candidate]:
    """``texts`` by validation NLL, best first; ``windows`` (N, T) are the validation windows.

    ``kept``: a file that gets each result as it comes, and from which a later call goes on. This is a search: the
    winner's own number is too good by its luck, so report it on a test split.
    """
    arms = {text: Arm("hard", model, prefix.hard(model, tokenizer, text)) for text in texts}
    for arm in arms.values():  # all are checked before the first is scored
        check_context(model, arm.prefix.k, windows.shape[1])
    plain = Arm("none", model, prefix.none(model))
    key = {"model": tensor_fingerprint(*model.state_dict().values()), "windows": tensor_fingerprint(windows)}
    known = _read(kept, key) if kept is not None else {}
    missing = [text for text in ("", *texts) if text not in known]
    for text in progress(missing, total=len(missing), label="candidates"):
        known[text] = window_nll(arms.get(text, plain), windows).tolist()
        if kept is not None:
            _write(kept, key, known)
    targets = windows.shape[1] - 1
    sums = {text: torch.tensor(known[text], dtype=torch.float64) for text in ("", *texts)}
    found = [
        Candidate(
            text,
            arms[text].prefix.k,
            float(sums[text].mean()) / targets,
            paired_difference(sums[text], sums[""], targets, seed=seed),
        )
        for text in texts
    ]
    return sorted(found, key=lambda candidate: candidate.nll)


def _read(path: Path, key: dict[str, str]) -> dict[str, list[float]]:
    """Results kept earlier, by text. Raises InputError where the file belongs to something else."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        results = {str(text): [float(x) for x in nll] for text, nll in kept["results"].items()}
        found = {name: kept[name] for name in key}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path} holds no results of this search; give another file") from None
    if found != key:
        raise InputError(f"{path} holds results of another model or corpus; give another file or delete it")
    return results


def _write(path: Path, key: dict[str, str], results: dict[str, list[float]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**key, "results": results})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
