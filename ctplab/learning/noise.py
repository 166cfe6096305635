"""Noise on compressed weights while a prompt is learned, so that it does not lean on one set of rounding errors.

A step sees W̃ + s σ ε instead of W̃: ε is standard normal, σ the root mean square of W̃ - W in this matrix (the rounding
error), s the recipe's ``noise``. The noise depends on seed and step alone, so a resumed run repeats it. After the step
the weights are what they were, bit by bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import block_matrices, is_packed


@torch.no_grad()
def error_sizes(model: Model, full: Model) -> list[float]:
    """The root mean square of W̃ - W for each matrix of the blocks, in order.

    Raises InputError if ``model`` runs from packed weights, or if the matrices of ``full`` are others.
    """
    mine, its = _dense(model), list(block_matrices(full))
    if [a.shape for a in mine] != [b.shape for b in its]:
        raise InputError("noise needs the full model that the compressed one was made from: their matrices differ")
    return [float((a.float() - b.to(a.device).float()).square().mean().sqrt()) for a, b in zip(mine, its, strict=True)]


@contextmanager
def noisy(model: Model, sizes: list[float], seed: int) -> Iterator[None]:
    """Inside, every matrix of the blocks has normal noise of its size added, drawn with ``seed``."""
    matrices = _dense(model)
    kept = [matrix.detach().clone() for matrix in matrices]
    try:
        with torch.no_grad():
            _add(matrices, sizes, seed)
        yield
    finally:
        with torch.no_grad():
            for matrix, before in zip(matrices, kept, strict=True):
                matrix.copy_(before)


def _add(matrices: list[Tensor], sizes: list[float], seed: int) -> None:
    generators: dict[torch.device, torch.Generator] = {}
    for matrix, size in zip(matrices, sizes, strict=True):
        if matrix.device not in generators:
            generators[matrix.device] = torch.Generator(matrix.device).manual_seed(seed)
        drawn = torch.randn(matrix.shape, generator=generators[matrix.device], device=matrix.device)
        matrix.add_(drawn.to(matrix.dtype), alpha=size)


def _dense(model: Model) -> list[Tensor]:
    if any(map(is_packed, model.modules())):
        raise InputError("noise needs dense weights: load the model without packed=True")
    return list(block_matrices(model))
