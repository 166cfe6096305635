"""How many learning steps a prompt took to close a share of the gap: a learning curve, read in another unit.

A learning curve holds the NLL on validation windows. Between the compressed model's and the full model's NLL on the
same windows it becomes a share of the gap, and a warm start can be held against a cold one.

    share(step) = (NLL_compressed - NLL(step)) / (NLL_compressed - NLL_full)

Learning keeps the best rows so far, so a share counts as reached from the first look at which the curve was there.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ctplab.errors import InputError


@dataclass(frozen=True)
class Pace:
    """One prompt's way: (steps, share of the gap) at each look, the first before any step."""

    name: str
    points: tuple[tuple[int, float], ...]

    def steps_to(self, share: float) -> int | None:
        """Steps until the first look at which at least ``share`` was closed; None if it never was."""
        return next((step for step, closed in self.points if closed >= share), None)

    @property
    def best(self) -> float:
        """The largest share that a look has seen."""
        return max(closed for _, closed in self.points)


def pace(name: str, looks: Iterable[tuple[int, float]], compressed: float, full: float) -> Pace:
    """``looks``: (steps taken, NLL a token) on the windows that gave ``compressed`` and ``full``, both NLL a token.

    Raises InputError if compression left no gap there, or if there are no looks.
    """
    gap = compressed - full
    if not (math.isfinite(gap) and gap > 0):
        raise InputError("compression did not raise the NLL on the validation windows: there is no share to reach")
    points = tuple(sorted((step, (compressed - nll) / gap) for step, nll in looks))
    if not points:
        raise InputError(f"{name} has no learning curve")
    return Pace(name, points)
