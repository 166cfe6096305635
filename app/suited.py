"""Settings that suit a model: what the forms of *Compress* and *Train* begin with, and begin with again for another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctplab.app.bench import Bench
from ctplab.formats.tuned import SOFT
from ctplab.learning.tuned import RATE

SMALL = 20_000_000
"""Weights of a model that learns hundreds of steps in a minute or two on two cores."""


@dataclass(frozen=True)
class Suited:
    """Windows to calibrate on and to learn from, and for how long."""

    corpus: str
    seq_len: int
    samples: int
    batch: int
    steps: int
    every: int
    lr: float
    kl: float
    answer: int
    """Tokens of a longest answer."""
    scored: int
    """Windows for a measurement that scores once for each row."""

    def rate(self, what: Sequence[str]) -> float:
        """The learning rate for what is learned, a prompt alone or other things."""
        return self.lr if list(what) == [SOFT] else RATE


def suited(bench: Bench, name: str) -> Suited:
    """For the model called ``name``: the embedded world's text for the embedded model, general English for others."""
    model = bench.model(name)
    if bench.is_embedded(name):
        return Suited("atlas-web", 128, 128, 16, 200, 20, 0.1, 1.0, 24, 32)
    corpus = "c4" if os.environ.get("CTPLAB_DATA") else "docs"
    if sum(part.numel() for part in model.model.parameters()) < SMALL:
        return Suited(corpus, 128, 128, 16, 200, 20, 0.1, 1.0, 48, 32)
    return Suited(corpus, 256, 64, 4, 40, 10, 0.03, 0.0, 48, 4)  # as the tour of SmolLM2: minutes on two cores


def compress_values(found: Suited) -> list[Any]:
    """Calibration text, windows, tokens a window."""
    return [found.corpus, found.samples, found.seq_len]


def train_values(found: Suited, what: Sequence[str]) -> list[Any]:
    """Text, tokens a window, steps, batch, validate every, learning rate, weight of the KL."""
    return [found.corpus, found.seq_len, found.steps, found.batch, found.every, found.rate(what), found.kl]


def worth_values(found: Suited) -> list[Any]:
    """Text, windows, tokens a window."""
    return [found.corpus, found.scored, found.seq_len]
