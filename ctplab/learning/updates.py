"""The kinds of changes that ``learning/tuned`` learns, each as a function of free parameters that start at no change.

Each moves by about a tenth of the learning rate in a step of AdamW, so one rate suits all of them. Codes and kept
values are so many that less is enough.

Low-rank updates of quantised weights are added inside the rounding (LR-QAT, arXiv 2406.06385), because nothing between
two codes can be stored; those of pruned weights keep the mask (PERP, arXiv 2312.15230).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctplab.compression.packing import group_of, kept_of
from ctplab.learning.codes import Codes

STEP = 0.1
"""How much a parameter moves in units of the learning rate, relative to what it changes."""
VALUE_STEP = 0.01
"""The same for single kept values of a pruned matrix."""

Parts = dict[str, Tensor]
"""A packed matrix, see ``compression/packing``."""


@dataclass(frozen=True)
class Update:
    """One kind of change of one matrix or norm."""

    parameters: dict[str, Tensor]
    """The fp32 leaf tensors by name, ``KIND:UNIT``; all names of a model differ."""
    change: Callable[[Tensor], Tensor]
    """The weight (out, in), or the norm, as the parameters change it."""
    found: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """What these values of the parameters stand for, in the words of ``formats.tuned.fold``, on the device."""


def size_of(x: Tensor) -> float:
    """The root mean square, or 1 if there is nothing but zeros."""
    size = float(x.float().square().mean().sqrt())
    return size if size > 0 else 1.0


def scales(unit: str, parts: Parts, matrix: Tensor) -> Update:
    """W·(1 + u/10), one u for each grid (row, or group of a row)."""
    name = f"scale:{unit}"
    shape = parts["scale"].shape if "scale" in parts else (len(matrix), 1)
    u = torch.zeros(shape, device=matrix.device)
    of_column = None
    if u.shape[1] > 1:  # (groups, in): 1 where the column is of that group; a product has a fixed order of sums
        of_column = nn.functional.one_hot(group_of(parts), u.shape[1]).T.to(matrix.device, matrix.dtype)

    def change(w: Tensor) -> Tensor:
        factor = 1 + STEP * (u if of_column is None else u @ of_column.to(u.dtype))
        return w * factor.to(w.dtype)

    return Update({name: u}, change, lambda values: {name: 1 + STEP * values[name].float()})


def norm(name: str, weight: Tensor) -> Update:
    """w + |w|·u/10, with |w| the root mean square of that parameter, or 1 for a parameter of zeros."""
    name, original, size = f"norm:{name}", weight.detach(), STEP * size_of(weight.detach())
    u = torch.zeros(weight.shape, device=weight.device)
    return Update(
        {name: u},
        lambda w: (w.float() + size * u).to(w.dtype),
        lambda values: {name: original.float() + size * values[name].float().to(original.device)},
    )


def codes(unit: str, parts: Parts, bits: int, matrix: Tensor, full: Tensor | None) -> Update:
    """One u for each weight, inside the rounding (``learning/codes``). ``full`` (out, in): before it was rounded."""
    name, grid = f"code:{unit}", Codes.of(parts, bits, matrix.device)
    u = _start(grid, full)
    return Update({name: u}, lambda w: grid.weight(u, w.dtype), lambda values: {name: grid.steps(values[name])})


def low_rank_codes(unit: str, parts: Parts, bits: int, matrix: Tensor, full: Tensor | None, right: Tensor) -> Update:
    """The u of all codes is that of their start + B·A. ``right``: the A (rank, in) to start from; B is zero.

    A moves in units of its own size, which is 1/sqrt(in) a value.
    """
    grid = Codes.of(parts, bits, matrix.device)
    at = _start(grid, full).half()
    names, size = (f"left:{unit}", f"right:{unit}"), 1 / math.sqrt(right.shape[1])
    first = right.to(matrix.device)
    left = torch.zeros(len(matrix), len(right), device=matrix.device)
    moved = torch.zeros_like(first)

    def u(left: Tensor, moved: Tensor) -> Tensor:
        return at + left @ (first + size * moved)

    def found(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"code:{unit}": grid.steps(u(*(values[name].to(at.device) for name in names)))}

    return Update(dict(zip(names, (left, moved), strict=True)), lambda w: grid.weight(u(left, moved), w.dtype), found)


def values(unit: str, parts: Parts, matrix: Tensor) -> Update:
    """W + mask·|W|·u/100 for a matrix that is pruned only; |W| is the root mean square of the kept values."""
    name, mask = f"value:{unit}", kept_of(parts).to(matrix.device)
    size, u = VALUE_STEP * size_of(matrix[mask]), torch.zeros(matrix.shape, device=matrix.device)
    return Update(
        {name: u},
        lambda w: w + (size * mask * u).to(w.dtype),
        lambda values: {name: size * values[name].float()},
    )


def low_rank(unit: str, parts: Parts, matrix: Tensor, right: Tensor) -> Update:
    """W + mask·(B·A)·|W|/10 for a matrix that is pruned only. ``right``: the A (rank, in) to start from; B is zero."""
    names, mask = (f"left:{unit}", f"right:{unit}"), kept_of(parts).to(matrix.device)
    size = STEP * size_of(matrix[mask])
    right = right.clone().to(matrix.device)
    left = torch.zeros(len(matrix), len(right), device=matrix.device)
    return Update(
        dict(zip(names, (left, right), strict=True)),
        lambda w: w + mask * (left @ right * size).to(w.dtype),
        lambda values: {names[0]: size * values[names[0]].float(), names[1]: values[names[1]].float()},
    )


def _start(grid: Codes, full: Tensor | None) -> Tensor:
    """The u at which no code has moved: see ``Codes.start``; 0 if the full weights are not there."""
    if full is None or full.shape != grid.codes.shape:
        return torch.zeros(grid.codes.shape, device=grid.codes.device)
    return grid.start(full.to(grid.codes.device))
