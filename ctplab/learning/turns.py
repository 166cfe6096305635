"""Whose turn it is: the models that a prompt is learned through, one a step, and what changes in their weights.

given models    as they are, in turn; validation sees these only, without noise
redrawn         one more that takes its turn: a new compression every few of its turns (``redraw``)
noise           on the weights of whichever has its turn, in each step (``noise``)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ctplab.errors import InputError
from ctplab.learning.noise import error_sizes, noisy
from ctplab.learning.redraw import Redraw
from ctplab.learning.schedule import seed_of
from ctplab.models import Model
from ctplab.specs import PromptSpec


class Turns:
    """The models of a run. ``full``: the uncompressed one, if it is at hand; noise is measured by it."""

    def __init__(self, given: Sequence[Model], redraw: Redraw | None, full: Any, spec: PromptSpec) -> None:
        self.models = [*given] if redraw is None else [*given, redraw.model]
        self._redraw, self._full, self._spec = redraw, full, spec
        self._sizes: list[list[float]] = []
        if spec.noise > 0:
            if not hasattr(full, "config"):
                raise InputError("noise is measured by the rounding error, which needs the full model itself: teacher=")
            self._sizes = [error_sizes(model, full) for model in self.models]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the models are, beyond the given ones and the recipe; as JSON."""
        return {} if self._redraw is None else {"redraw": self._redraw.identity}

    @contextmanager
    def on(self, step: int) -> Iterator[int]:
        """Inside, the model whose turn it is has the weights of this step. Gives its number."""
        number = step % len(self.models)
        if self._redraw is not None and number == len(self.models) - 1 and self._redraw.at(step // len(self.models)):
            self._sizes[-1:] = [error_sizes(self._redraw.model, self._full)] if self._sizes else []
        if not self._sizes:
            yield number
            return
        scaled = [self._spec.noise * size for size in self._sizes[number]]
        with noisy(self.models[number], scaled, seed_of(self._spec, step)):
            yield number
