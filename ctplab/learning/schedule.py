"""The schedule of learning: learning rate, batches and validations, as functions of the recipe and the step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.specs import PromptSpec

#: Largest share of validation windows among all windows seen, unless the recipe itself fixes its validations.
VALIDATION_SHARE = 0.1
#: More windows than this tell little more about which step is best.
MOST_WINDOWS = 64


def rate(spec: PromptSpec, step: int) -> float:
    """Learning rate: linear warm-up, then linear decay to zero."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    return spec.lr * (spec.steps - step) / max(1, spec.steps - spec.warmup)


def seed_of(spec: PromptSpec, step: int) -> int:
    """The seed of a step's own random numbers (dropout, noise), so that a resumed run draws the same."""
    return (spec.seed + 1) * 1_000_003 + step


def batches(n: int, spec: PromptSpec, first: int) -> Iterator[Tensor]:
    """Yield window numbers (batch,) for each step from ``first`` on. Every epoch is a new permutation of n windows."""
    per_epoch = max(1, n // spec.batch)
    epoch, order = -1, torch.arange(n)
    for step in range(first, spec.steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(n, generator=torch.Generator().manual_seed(spec.seed * 1_000_003 + epoch))
        start = (step % per_epoch) * spec.batch
        yield order[start : start + spec.batch]


@dataclass(frozen=True)
class Validations:
    """When to validate, and on how many windows."""

    every: int
    windows: int
    steps: int

    def due(self, step: int) -> bool:
        """Whether to validate after this step (counted from 0). Always true for the last step."""
        return (step + 1) % self.every == 0 or step == self.steps - 1

    @property
    def count(self) -> int:
        """Number of validations, including the one before the first step."""
        return 1 + sum(self.due(step) for step in range(self.steps))


def validations(spec: PromptSpec, train: int, held_out: int, models: int = 1) -> Validations:
    """Choose the settings that the recipe leaves open, so that at most a tenth of all windows are validation windows.

    ``train`` and ``held_out``: numbers of windows; ``models``: number of models that each validation runs on. A
    validation window counts like a training window, although it has no backward pass. There are always two validations
    of at least one window, before the first step and after the last: a recipe of under 18 windows exceeds its tenth.
    """
    seen = spec.steps * min(spec.batch, train)
    budget = int(seen * VALIDATION_SHARE / (1 - VALIDATION_SHARE)) // models
    fixed = spec.evaluate_every
    planned = 4 if fixed is None else 2 + (spec.steps - 1) // fixed
    windows = spec.validation_windows or min(MOST_WINDOWS, max(1, budget // planned))
    windows = min(windows, held_out)
    if fixed is None:
        later = max(1, budget // windows - 1)  # one validation comes before the first step
        fixed = -(-spec.steps // later)
    return Validations(fixed, windows, spec.steps)
