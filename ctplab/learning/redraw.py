"""Compressions drawn anew while a prompt is learned: every few steps another copy, from other calibration windows.

A model in memory takes its turn among the given ones. At each draw it gets the full model's weights back and is
compressed again. Draw i depends on i alone, so a resumed run makes the same copies. Validation sees the given models
only.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctplab.compression.walk import compress
from ctplab.models import Model
from ctplab.models.fingerprints import weights_fingerprint
from ctplab.progress import silent
from ctplab.specs import CompressionSpec
from ctplab.text.corpora import Split


def calibration(texts: Sequence[Split], i: int, samples: int, seed: int) -> Tensor:
    """The windows of copy ``i``: of ``texts`` in turn, with the seed ``seed`` + i; every other time half as many."""
    return texts[i % len(texts)].sample(samples if i % 2 == 0 else max(1, samples // 2), seed + i)


class Redraw:
    """A model that is a new compression of ``full`` every ``every`` of its own turns."""

    def __init__(
        self,
        full: Model,
        texts: Sequence[Split],
        spec: CompressionSpec,
        *,
        every: int = 25,
        samples: int = 64,
        seed: int = 1,
    ) -> None:
        self.model = copy.deepcopy(full)
        self._full, self._texts, self._spec = full, texts, spec
        self._every, self._samples, self._seed = every, samples, seed
        self._drawn: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides which copies are drawn, as JSON."""
        return {
            "full": weights_fingerprint(self._full),
            "texts": [text.fingerprint for text in self._texts],
            "spec": self._spec.to_json(),
            "every": self._every,
            "samples": self._samples,
            "seed": self._seed,
        }

    def draws(self, turns: int) -> int:
        """How many copies ``turns`` turns see."""
        return -(-turns // self._every)

    @torch.no_grad()
    def at(self, turn: int) -> bool:
        """Make ``model`` the copy of its turn number ``turn``, in place. Says whether that is a new one."""
        draw = turn // self._every
        if draw == self._drawn:
            return False
        for mine, its in zip(self.model.parameters(), self._full.parameters(), strict=True):
            mine.copy_(its)
        windows = calibration(self._texts, draw, self._samples, self._seed)
        compress(self.model, windows, self._spec, progress=silent, inplace=True)
        self._drawn = draw
        return True
