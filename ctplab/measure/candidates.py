"""Rank hard prompts: compare every candidate with no prompt, on the same validation windows."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.measure.perplexity import window_scores, windows_of
from ctplab.measure.stats import Interval, change
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.text.corpora import Split


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
    text: Split | Tensor,
    *,
    limit: int | None = None,
    keep: Keep = compute_always,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Candidate]:
    """``texts`` by validation NLL, best first, on the first ``limit`` windows of ``text``, a validation split.

    Each result is kept as soon as it is known. The search makes the winner's own number too optimistic, so report the
    winner on a test split.
    """
    arms = {wording: Arm("hard", model, prefix.hard(model, tokenizer, wording)) for wording in texts}
    longest = max((arm.prefix.k for arm in arms.values()), default=0)
    check_context(model, longest, windows_of(text, limit).shape[1])  # before the first is scored
    plain = Arm("none", model, prefix.none(model))
    sums = {}
    for wording in progress(["", *texts], total=len(texts) + 1, label="candidates"):
        name = hashlib.sha256(wording.encode()).hexdigest()[:16]
        sums[wording] = window_scores(arms.get(wording, plain), text, limit=limit, keep=keep, name=name)
    found = [
        Candidate(
            wording,
            arms[wording].prefix.k,
            sums[wording].score.mean,
            change(sums[wording], sums[""], seed=seed),
        )
        for wording in texts
    ]
    return sorted(found, key=lambda candidate: candidate.nll)
