"""The losses of a card's steps, read a few times a second: the host does not wait for one before it sends the next."""

import math
import time

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.learning.learned import Step

READ_EVERY = 0.2
"""Seconds between two readings of a card's losses."""


def _patient(device: torch.device) -> bool:
    """Whether losses may wait to be read. Several processes must stop at the same step, so each reads every loss."""
    return device.type == "cuda" and parallel.size() == 1


def _finite(read: list[float]) -> bool:
    return all(map(math.isfinite, read))


class Unread:
    """Steps whose loss and gradient norm are still on the device, and the time that they took."""

    def __init__(self, device: torch.device) -> None:
        self._patient, self._since, self._trained = _patient(device), time.perf_counter(), 0.0
        self._waiting: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss and norm
        self._read: list[list[float]] = []

    def add(self, step: int, rate: float, found: Tensor) -> None:
        """Remember a step's learning rate, and its loss and gradient norm (2,)."""
        self._waiting.append((step, rate, found))

    @property
    def may_wait(self) -> bool:
        """Whether they need not be read yet."""
        return self._patient and time.perf_counter() - self._since < READ_EVERY

    def read(self) -> int | None:
        """Wait for all of them. Returns the first step whose loss or gradient is not finite."""
        self._read = torch.stack([found for *_, found in self._waiting]).tolist()
        self._trained = (time.perf_counter() - self._since) / len(self._waiting)
        steps = (step for step, *_ in self._waiting)
        return next((step for step, read in zip(steps, self._read, strict=True) if not _finite(read)), None)

    def take(self, tokens: int, measured: float | None) -> list[Step]:
        """The steps up to the first that is not finite; the last one was ``measured``. ``tokens``: of one step."""
        seconds = (time.perf_counter() - self._since) / len(self._waiting)
        last, fresh = self._waiting[-1][0], list[Step]()
        for (step, rate, _), read in zip(self._waiting, self._read, strict=True):
            if not _finite(read):
                break
            fresh.append(Step(step, read[0], rate, seconds, tokens / self._trained, measured if step == last else None))
        self._waiting.clear()
        return fresh

    def restart(self) -> None:
        """Begin to count the time of the next steps."""
        self._since = time.perf_counter()
