"""Compress a model several times to one level, so that a prompt learned on all copies suits the level and no one copy.

The copies differ as copies of different people do: in the calibration text, its seed and its size. Each is a folder of
its own and is made once; a killed run goes on at the block where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctplab.formats.streaming import compress_to
from ctplab.learning.redraw import calibration
from ctplab.models import Tokenizer
from ctplab.specs import CompressionSpec
from ctplab.text.corpora import Split


def recompress(
    base: str | Path,
    out: Path,
    tokenizer: Tokenizer,
    texts: Sequence[Split],
    spec: CompressionSpec,
    n: int,
    *,
    samples: int = 64,
    seed: int = 0,
    **settings: Any,
) -> list[Path]:
    """Compress the model ``base`` ``n`` times into ``out/0`` to ``out/n-1``; returns these folders.

    Copy i is calibrated on ``texts`` in turn, with the seed ``seed`` + i, and on ``samples`` windows or, every other
    time, on half of them. ``settings`` are those of :func:`ctplab.formats.streaming.compress_to`, which says what is
    refused.
    """
    folders = [out / str(i) for i in range(n)]
    for i, folder in enumerate(folders):
        compress_to(base, folder, tokenizer, calibration(texts, i, samples, seed), spec, **settings)
    return folders
