"""The transfer matrix: prompts learned on one model (the source) in front of other models (the targets).

A cell is (source, target, corpus): the target's NLL with the source's prompt, next to that of the same target without a
prompt (the source ``none``) on the same windows; the share of the gap that it closes, if the full model is given; and
how far the target's weights are from those that the prompt was learned through, if these are given (``distance``).
Targets are loaded one at a time, and every cell is kept as soon as it is known. If a pair does not fit (another
tokenizer, another width, too little context), its cell says why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.formats.prompt_file import SavedPrompt, attach
from ctplab.measure.distance import Distance, weight_distance
from ctplab.measure.perplexity import window_scores
from ctplab.measure.stats import Interval
from ctplab.measure.stats import change as change_of
from ctplab.measure.stats import recovery as share_of_gap
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context, context_length
from ctplab.models.fingerprints import copy_fingerprint, same_base
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.scores import Score
from ctplab.text.corpora import corpus


@dataclass(frozen=True)
class Target:
    """A model to try prompts on. ``home`` names it as prompts name the model that they were learned on."""

    name: str
    home: str
    load: Callable[[], tuple[Model, Tokenizer]]


@dataclass(frozen=True)
class TransferCell:
    """One cell of the matrix. If a pair was not measured, ``refused`` says why and there are no numbers."""

    source: str
    target: str
    corpus: str
    diagonal: bool
    """True if the prompt was learned on this target."""
    nll: float | None = None
    n_tokens: int = 0
    change: Interval | None = None
    """NLL per token with the prompt minus without it, paired over windows; below 0 it helps. None for ``none``."""
    recovery: Interval | None = None
    """Share of the target's gap to the full model that the prompt closes. None without the full model."""
    distance: Distance | None = None
    """From the weights that the prompt was learned through, the nearest if they are several. None if not given."""
    refused: str | None = None

    @property
    def ppl(self) -> float | None:
        return None if self.nll is None else Score(self.nll, self.n_tokens).ppl

    def to_json(self) -> dict[str, Any]:
        """A plain dict with the perplexity."""
        return asdict(self) | {"ppl": self.ppl}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse."""
        kinds: dict[str, Callable[..., Any]] = {"change": Interval, "recovery": Interval, "distance": Distance}
        built = {name: kinds[name](**data[name]) for name in kinds if data.get(name) is not None}
        return cls(**{name: value for name, value in data.items() if name not in ("ppl", *kinds)}, **built)


def home(info: Mapping[str, Any]) -> str:
    """The compressed model as a prompt's or a model's manifest names it: base and tag."""
    return f"{info.get('base', 'unknown')} {info.get('tag', 'full')}"


def at_home(prompt: SavedPrompt, target: Target, model: Model) -> bool:
    """Whether the prompt was learned through the weights of ``model``; by base and level if it names no weights."""
    if copies := prompt.info.get("copies"):
        return copy_fingerprint(model) in copies
    return home(prompt.info) == target.home


def check_names(sources: Mapping[str, SavedPrompt], targets: Sequence[Target]) -> None:
    """Raise InputError if the names do not tell the cells apart."""
    if len({target.name for target in targets}) < len(targets) or "none" in sources:
        raise InputError("every target needs a name of its own, and 'none' is no name for a source")


def transfer(
    sources: Mapping[str, SavedPrompt],
    targets: Sequence[Target],
    corpora: Sequence[str],
    *,
    seq_len: int,
    full: Model | None = None,
    learned_on: Sequence[Model] = (),
    limit: int | None = None,
    loss: str | None = None,
    batch: int = 16,
    force: bool = False,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> list[TransferCell]:
    """Measure all cells, target by target: first each target without a prompt, then with every source's prompt.

    ``corpora``: names as in :func:`ctplab.text.corpora.corpus`, scored on their test splits in windows of ``seq_len``
    (the first ``limit``), the same windows for every source; ``loss`` as there. ``full``: the uncompressed model of all
    targets, for the share of the gap; a target of another base has none. ``learned_on``: models that prompts were
    learned through, for the distance of their weights; a prompt finds its own among them by their fingerprints.
    """
    check_names(sources, targets)
    known = {copy_fingerprint(model): model for model in learned_on}
    cells = []
    for target in targets:
        model, tokenizer = target.load()
        if seq_len > (context_length(model) or seq_len):  # then propose what is short enough for every prompt
            check_context(model, max((saved.prefix.k for saved in sources.values()), default=0), seq_len)
        whole = full if full is not None and same_base(full, model) else None
        kin = {copy: source for copy, source in known.items() if same_base(source, model)}
        apart = {name: _nearest(saved, kin, model, whole) for name, saved in sources.items()}
        for name in corpora:
            text = corpus(name, tokenizer, seq_len, loss=loss).test
            sums = partial(window_scores, text=text, limit=limit, batch=batch, keep=keep, progress=progress)
            plain = sums(Arm("none", model, prefix.none(model)), name=f"none--{target.name}--{name}")
            best = None if whole is None else sums(Arm("full", whole, prefix.none(whole)), name=f"full--{name}")
            cells.append(TransferCell("none", target.name, name, False, plain.score.nll, plain.score.n_tokens))
            for source, saved in sources.items():
                diagonal = at_home(saved, target, model)
                cell = TransferCell(source, target.name, name, diagonal, distance=apart[source])
                try:
                    attach(saved, model, tokenizer, force=force)
                    check_context(model, saved.prefix.k, seq_len)
                    prompted = sums(Arm(source, model, saved.prefix), name=f"{source}--{target.name}--{name}")
                except InputError as error:
                    cells.append(replace(cell, refused=str(error)))
                    continue
                closed = None if best is None else share_of_gap(best, plain, prompted)
                found, change = prompted.score, change_of(prompted, plain)
                cells.append(replace(cell, nll=found.nll, n_tokens=found.n_tokens, change=change, recovery=closed))
    return cells


def _nearest(prompt: SavedPrompt, known: Mapping[str, Model], target: Model, full: Model | None) -> Distance | None:
    """The least distance of ``target`` from the weights that a prompt was learned through. None if none is known."""
    own = [known[copy] for copy in prompt.info.get("copies", ()) if copy in known]
    return min((weight_distance(model, target, full) for model in own), key=lambda found: found.apart, default=None)
