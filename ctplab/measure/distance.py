"""How far the weights of two compressions of one model lie apart, in units of what compression itself changed.

A prompt is learned through one set of rounding errors. Whether it fits another set depends on how much the two have in
common, and no name of a level says that. All compressed matrices count as one long vector; A, B and F are those of the
source, the target and the full model.

    apart      |A - B| / |B|                    0: the same weights
    in_errors  |A - B| / |B - F|                0: the same weights; 1: as far as the full model is; sqrt(2): errors of
                                                equal size that have nothing in common
    alike      cos(A - F, B - F)                1: the same errors; 0: nothing in common
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import block_matrices, embeddings


@dataclass(frozen=True)
class Distance:
    """The distance of two sets of weights. What needs the full model, or an error that is not 0, is else None."""

    apart: float
    error: float | None = None
    """|B - F| / |F|: the size of the target's own rounding error."""
    in_errors: float | None = None
    alike: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    def __str__(self) -> str:
        if self.in_errors is None or self.alike is None:
            return f"{100 * self.apart:.1f}%"
        return f"{self.in_errors:.2f} errors, alike {self.alike:.2f}"


def distance(first: Iterable[Tensor], second: Iterable[Tensor], full: Iterable[Tensor] | None = None) -> Distance:
    """The distance of two sets of matrices of equal shapes, taken one by one and summed in float64.

    Raises InputError if the shapes differ: these are no compressions of one model.
    """
    each = [first, second] if full is None else [first, second, full]
    return _of_sums(_sums(zip_longest(*each, fillvalue=torch.empty(0))), full is not None)


def weight_distance(first: Model, second: Model, full: Model | None = None) -> Distance:
    """The distance of two models' blocks, matrix by matrix, packed or not. Embeddings and head are left out.

    Models that are compared should be in one dtype: rounding to half precision counts as well. Raises InputError if the
    models have other matrices.
    """
    return distance(_computed_with(first), _computed_with(second), None if full is None else _computed_with(full))


def _computed_with(model: Model) -> Iterator[Tensor]:
    """The blocks' matrices in the model's dtype: packed ones too, which are float32 until they are multiplied."""
    dtype = embeddings(model).dtype
    return (matrix.to(dtype) for matrix in block_matrices(model))


def _sums(matrices: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """(6,) float64: |A - B|², |B|², |A - F|², |B - F|², <A - F, B - F>, |F|² over all (A, B, F); without F it is B."""
    total = torch.zeros(6, dtype=torch.float64)
    for a, b, *rest in matrices:
        f = rest[0] if rest else b
        if not a.shape == b.shape == f.shape:
            raise InputError(
                f"matrices of {tuple(a.shape)}, {tuple(b.shape)} and {tuple(f.shape)} are of no one model: there is no "
                "distance between them"
            )
        a, b, f = (x.detach().cpu().double().flatten() for x in (a, b, f))
        mine, its = a - f, b - f
        found = ((a - b).square().sum(), b.square().sum(), mine @ mine, its @ its, mine @ its, f @ f)
        total += torch.stack(found)
    return total


def _of_sums(sums: Tensor, has_full: bool) -> Distance:
    between, size, mine, its, common, full = sums.tolist()
    apart = math.sqrt(between / size) if size else 0.0
    if not has_full or full == 0:
        return Distance(apart)
    error = math.sqrt(its / full)
    if its == 0:  # the target is the full model
        return Distance(apart, error)
    return Distance(apart, error, math.sqrt(between / its), common / math.sqrt(mine * its) if mine else None)
