"""Intervals and tests: paired bootstrap over windows or questions, Wilson for shares, McNemar. Pure and seeded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ctplab.scores import WindowScores


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def percent(self) -> str:
        """The interval in percent, such as ``+45% [+42, +48]``. A share of a gap that is zero cannot be told."""
        if not math.isfinite(self.value):
            return "cannot tell"
        return f"{100 * self.value:+.0f}% [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"


def wilson(hits: int, n: int) -> Interval:
    """95% interval of a share (Wilson, 1927)."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    z, p = 1.959964, hits / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n)))


def mcnemar(first: list[bool], second: list[bool]) -> float:
    """p value of the two-sided exact McNemar test (1947) on the questions that only one of two arms gets right."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


@dataclass(frozen=True)
class Flips:
    """What changes from one arm's answers to another's. An equal number right can hide many flips."""

    lost: int
    """Questions that the first arm has right and the second wrong."""
    won: int
    """Questions that the first arm has wrong and the second right."""
    n: int
    """Questions on which both were judged."""
    p: float
    """p value of the exact McNemar test on these."""


def flips(first: Sequence[bool | None], second: Sequence[bool | None]) -> Flips:
    """Count the flips between two arms' answers to the same questions. None: not judged, so not counted."""
    judged = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    lost, won = sum(a and not b for a, b in judged), sum(b and not a for a, b in judged)
    return Flips(lost, won, len(judged), mcnemar([a for a, _ in judged], [b for _, b in judged]))


def resample(n: int, draws: int, seed: int) -> Tensor:
    """Draw indices (draws, n) with replacement. One seed gives the same indices to everything that is compared."""
    return torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))


def _limits(sample: Tensor) -> tuple[float, float]:
    low, high = torch.nanquantile(sample, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_mean(first: Tensor, second: Tensor, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``first`` minus ``second``, (N,) values of the same N questions, with its paired 95% interval."""
    return ratio_of_sums(first.double() - second.double(), torch.ones(len(first)), draws, seed)


def change(arm: WindowScores, other: WindowScores, *, draws: int = 2000, seed: int = 0) -> Interval:
    """NLL per token of ``arm`` minus that of ``other``, with its paired 95% interval over windows; below 0 is better.

    Raises InputError if the scores are of different windows.
    """
    arm.check_same_windows(other)
    return ratio_of_sums(arm.nll.double() - other.nll.double(), arm.n_tokens, draws, seed)


def ratio_of_sums(values: Tensor, counts: Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """Σ values / Σ counts, (N,) each, with its bootstrap interval over the N items."""
    counts, picks = counts.double(), resample(len(values), draws, seed)
    sample = values[picks].sum(1) / counts[picks].sum(1)
    return Interval(float(values.sum() / counts.sum()), *_limits(sample))


def quantile(values: Tensor, group: Tensor, q: float, *, draws: int = 500, seed: int = 0) -> Interval:
    """The least of ``values`` (n,) that a share ``q`` does not exceed, with its 95% interval over groups.

    ``group`` (n,): the number of each value's group. The bootstrap draws whole groups, because the values of one text
    hang together.
    """
    ordered, order = values.double().sort()
    _, numbers = group[order].unique(return_inverse=True)
    n_groups = int(numbers.max()) + 1

    def at(weights: Tensor) -> Tensor:
        """``weights`` (draws, groups): how often each group counts -> (draws,)."""
        below = weights[:, numbers].cumsum(1)
        wanted = (q * below[:, -1:]).contiguous()
        return ordered[torch.searchsorted(below, wanted)[:, 0].clamp(max=len(ordered) - 1)]

    value = at(torch.ones(1, n_groups, dtype=torch.float64))[0]
    counts = torch.stack([torch.bincount(pick, minlength=n_groups) for pick in resample(n_groups, draws, seed)])
    sample = torch.cat([at(part) for part in counts.double().split(25)])  # 25 at a time: each is as long as the text
    return Interval(float(value), *_limits(sample))


def recovery(
    full: WindowScores, compressed: WindowScores, arm: WindowScores, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Share of the NLL gap that an arm closes, (compressed - arm) / (compressed - full), with its 95% interval.

    The bootstrap draws the same windows for all three, so the window-to-window spread that they share cancels. 1 is the
    full model's NLL, above 1 is better; values are not clipped. NaN if compression left no gap. Raises InputError if
    the scores are of different windows.
    """
    full.check_same_windows(compressed, arm)

    def ratio(f: Tensor, c: Tensor, a: Tensor) -> Tensor:
        gap = c - f
        return torch.where(gap.abs() > 1e-9, (c - a) / gap, torch.full_like(gap, math.nan))

    sums = [scores.nll.double() for scores in (full, compressed, arm)]
    picks = resample(len(full), draws, seed)
    sample = ratio(*(nll[picks].sum(1) for nll in sums))
    return Interval(float(ratio(*(nll.sum() for nll in sums))), *_limits(sample))
