"""Rank hard prompts: compare every candidate with no prompt, on the same validation windows."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.measure.perplexity import window_scores
from ctplab.measure.stats import Interval, change
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm


@dataclass(frozen=True)
class Candidate:
    """A hard prompt and its measured effect."""

    text: str
    k: int
    """Number of tokens."""
    nll: float
    """Nats per target token."""
    difference: Interval
    """NLL per token minus that without a prompt, paired over windows, with its 95% interval; below 0 it helps."""


def rank_hard_prompts(
    model: Model,
    tokenizer: Tokenizer,
    texts: list[str],
    windows: Tensor,
    *,
    keep: Keep = compute_always,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Candidate]:
    """Sort ``texts`` by their NLL on the validation windows ``windows`` (N, T), best first.

    Each result is kept as soon as it is known. The search makes the winner's own number too optimistic, so report the
    winner on a test split.
    """
    arms = {text: Arm("hard", model, prefix.hard(model, tokenizer, text)) for text in texts}
    for arm in arms.values():  # check all before the first is scored
        check_context(model, arm.prefix.k, windows.shape[1])
    plain = Arm("none", model, prefix.none(model))
    sums = {}
    for text in progress(["", *texts], total=len(texts) + 1, label="candidates"):
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        sums[text] = window_scores(arms.get(text, plain), windows, keep=keep, name=name)
    found = [
        Candidate(
            text,
            arms[text].prefix.k,
            sums[text].score.mean,
            change(sums[text], sums[""], seed=seed),
        )
        for text in texts
    ]
    return sorted(found, key=lambda candidate: candidate.nll)
