"""A score is a sum with its number of targets, so no caller divides by a count of its own.

Only this file defines which tokens are targets: all tokens of a window except the first, for every arm; with a mask,
those of them that it names.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ctplab.errors import InputError


def count_targets(windows: Tensor, masks: Tensor | None = None) -> Tensor:
    """The number of targets of each window, which may be 0: (N, T), and its mask (N, T) bool -> (N,) int64."""
    if masks is None:
        return torch.full((windows.shape[0],), windows.shape[1] - 1)
    return masks[:, 1:].sum(1).cpu()


def target_rows(masks: Tensor | None) -> Tensor | None:
    """Which of the B·(T - 1) predictions of a batch are of targets: (B, T) bool -> (n,) numbers; None: all are."""
    return None if masks is None else masks[:, 1:].flatten().nonzero()[:, 0]


def predicted(x: Tensor, ids: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What predicts the targets, and the targets: ``x`` (B, T, d) of windows ``ids`` (B, T) -> (n, d), (n,).

    ``x`` are hidden states or logits. The one at t predicts the token at t + 1.
    """
    before, targets = x[:, :-1].flatten(0, 1), ids[:, 1:].flatten().to(x.device)
    rows = target_rows(masks)
    if rows is None:
        return before, targets
    return before[rows.to(x.device)], targets[rows.to(x.device)]


@dataclass(frozen=True)
class Score:
    """Keeps sums, never means, so that nobody can use a wrong denominator. Raises InputError without targets."""

    nll: float
    """Summed negative log likelihood, nats."""
    n_tokens: int
    """Number of targets."""

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise InputError("there is nothing to score: no targets")

    @property
    def mean(self) -> float:
        """Nats a target."""
        return self.nll / self.n_tokens

    @property
    def ppl(self) -> float:
        """exp(nll / n_tokens); infinite if that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def ppl_as_published(self, k: int, seq_len: int) -> float:
        """The number that the paper's evaluator would print for k prompt tokens: comparable with its tables only."""
        return self.ppl ** ((seq_len - 1) / (seq_len - 1 + k))

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nll + other.nll, self.n_tokens + other.n_tokens)

    def __str__(self) -> str:
        return f"ppl {self.ppl:.2f} ({self.n_tokens} tokens)"


@dataclass(frozen=True)
class WindowScores:
    """Summed NLL and number of targets per window: scores, changes and recoveries are computed from them."""

    nll: Tensor  # (N,) float64
    n_tokens: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def score(self) -> Score:
        """The score over all windows."""
        return Score(float(self.nll.sum()), int(self.n_tokens.sum()))

    def check_same_windows(self, *others: "WindowScores") -> None:
        """Raise InputError if the others have other numbers of targets per window."""
        if not all(torch.equal(self.n_tokens, other.n_tokens) for other in others):
            raise InputError("these scores are of different windows: they cannot be compared")

    def to_json(self) -> dict[str, Any]:
        """A plain dict; ``n_tokens`` is the sum, ``targets`` has one number per window."""
        return {"nll": self.nll.tolist(), "n_tokens": int(self.n_tokens.sum()), "targets": self.n_tokens.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse."""
        return cls(torch.tensor(data["nll"], dtype=torch.float64), torch.tensor(data["targets"], dtype=torch.int64))
