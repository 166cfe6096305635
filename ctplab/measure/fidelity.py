"""How close an arm's answers are to the full model's: KL(p_full || p_arm) and the same first choice, target by target.

Perplexity asks whether an arm likes the text. Fidelity asks whether it still says what the full model would say: a
prompt that adapts the model to a text can lower the perplexity and move the answers further away. Both are measured on
the targets that perplexity counts (``scores.predicted``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.perplexity import masks_of, windows_key, windows_of
from ctplab.measure.stats import Interval, quantile, ratio_of_sums
from ctplab.models.anatomy import check_context, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled
from ctplab.prompts.head import logits_after
from ctplab.scores import predicted, target_rows
from ctplab.text.corpora import Split

ROWS = 256
"""Logits of so many targets are in fp32 at a time."""
SPANS = (0, 16, 64, 256, 1024)
"""Where the positions in a window are cut to see whether the effect of a prompt fades."""


@dataclass(frozen=True)
class Span:
    """The targets at positions ``first`` .. ``last`` of their windows (the window's first token is 0)."""

    first: int
    last: int
    kl: Interval
    same: Interval


@dataclass(frozen=True)
class Fidelity:
    """An arm against the full model on n targets."""

    kl: Tensor
    """(n,) fp64 nats: KL(p_full || p_arm) of the distribution of each target."""
    same: Tensor
    """(n,) bool: whether both put the same token first."""
    window: Tensor
    """(n,) int64: the number of the target's window; intervals draw whole windows."""
    position: Tensor
    """(n,) int64: the target's position in its window."""

    @property
    def mean(self) -> Interval:
        """Mean KL, nats a target."""
        return self._mean(self.kl)

    @property
    def median(self) -> Interval:
        """Median KL, nats."""
        return quantile(self.kl, self.window, 0.5)

    @property
    def p99(self) -> Interval:
        """The 99th percentile of KL, nats: how bad the worst targets are."""
        return quantile(self.kl, self.window, 0.99)

    @property
    def same_top(self) -> Interval:
        """Share of targets for which both models put the same token first."""
        return self._mean(self.same)

    def spans(self, edges: Sequence[int] = SPANS) -> list[Span]:
        """The same by position: a list over ``edges[i]`` <= position < ``edges[i + 1]``; empty spans are left out."""
        found = []
        for low, high in zip(edges, (*edges[1:], 1 + int(self.position.max())), strict=True):
            here = (self.position >= low) & (self.position < high)
            if here.any():
                part = Fidelity(self.kl[here], self.same[here], self.window[here], self.position[here])
                found.append(Span(int(part.position.min()), int(part.position.max()), part.mean, part.same_top))
        return found

    def summary(self) -> dict[str, Any]:
        """What a report says of it, as plain data."""
        headline = {"mean": self.mean, "median": self.median, "p99": self.p99, "same_top": self.same_top}
        found: dict[str, Any] = {"n_tokens": len(self.kl)} | {name: vars(value) for name, value in headline.items()}
        spans = self.spans()
        found["by_position"] = [vars(s) | {"kl": vars(s.kl), "same": vars(s.same)} for s in spans]
        return found

    def _mean(self, values: Tensor) -> Interval:
        _, numbers = self.window.unique(return_inverse=True)
        sums = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64).index_add_(0, numbers, values.double())
        return ratio_of_sums(sums, torch.bincount(numbers))

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        found = {"same": self.same.int().tolist(), "window": self.window.tolist(), "position": self.position.tolist()}
        return {"kl": self.kl.tolist(), **found}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse."""
        kl, same = torch.tensor(data["kl"], dtype=torch.float64), torch.tensor(data["same"]).bool()
        return cls(kl, same, torch.tensor(data["window"]), torch.tensor(data["position"]))


def fidelity(
    arm: Arm,
    full: Arm,
    text: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    name: str = "",
    progress: Progress = silent,
) -> Fidelity:
    """Compare ``arm`` with ``full`` on a split, or on windows (N, T); ``limit`` takes only the first windows.

    ``keep`` stores the result under ``name`` for these arms and windows. Raises InputError if the two have different
    vocabularies, or one of them gives NaN.
    """
    windows, masks = windows_of(text, limit), masks_of(text, limit)
    key = {"arm": arm.fingerprint, "full": full.fingerprint, **windows_key(windows, masks)}

    def compute() -> dict[str, Any]:
        return _compare(arm, full, windows, masks, batch, progress).to_json()

    return Fidelity.from_json(keep(name, key, compute))


@torch.no_grad()
def _compare(arm: Arm, full: Arm, windows: Tensor, masks: Tensor | None, batch: int, progress: Progress) -> Fidelity:
    sizes = [int(each.model.get_output_embeddings().weight.shape[0]) for each in (arm, full)]
    if sizes[0] != sizes[1]:
        raise InputError(f"the models to compare have {sizes[0]} and {sizes[1]} tokens: only one vocabulary can agree")
    for each in (arm, full):
        check_context(each.model, max(arm.prefix.k, full.prefix.k), windows.shape[1])
    kv = [(each.model, compiled(each)) for each in (arm, full)]
    parts = torch.arange(len(windows)).split(batch)
    kl, same = [], []
    for numbers in progress(parts, total=len(parts), label=f"compare {arm.name}"):
        both = [logits_after(model, pairs, windows[numbers].to(embeddings(model).device)) for model, pairs in kv]
        for i, number in enumerate(numbers):
            ids, mask = windows[number][None], None if masks is None else masks[number][None]
            ours, theirs = (predicted(logits[i : i + 1], ids, mask)[0] for logits in both)
            for q, p in zip(ours.split(ROWS), theirs.split(ROWS), strict=True):
                found, agree = divergence(p.float(), q.float().to(p.device))
                kl.append(found.double().cpu())
                same.append(agree.cpu())
    values = torch.cat(kl)
    if not torch.isfinite(values).all():
        raise InputError(f"the {arm.name} arm or the full model gives NaN or infinite logits; try dtype='float32'")
    count, length = len(windows), windows.shape[1] - 1
    window = torch.arange(count)[:, None].expand(count, length).flatten()
    position = torch.arange(1, length + 1)[None].expand(count, length).flatten()
    chosen = target_rows(masks)
    if chosen is not None:
        window, position = window[chosen.cpu()], position[chosen.cpu()]
    return Fidelity(values, torch.cat(same), window, position)


def divergence(full: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """KL(full || other) in nats and whether both put the same token first: logits (n, V) twice -> (n,), (n,) bool."""
    p, q = full.log_softmax(-1), other.log_softmax(-1)
    terms = torch.where(p.exp() > 0, p.exp() * (p - q), 0)  # a token that the full model rules out adds nothing
    return terms.sum(-1).clamp(min=0), full.argmax(-1) == other.argmax(-1)
