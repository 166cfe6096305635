"""Affine integer grids: w = scale * (code - zero) with codes 0 .. 2^bits - 1. The zero is an integer, so 0 is exact.

Objective: the smallest grid that covers each row (or group of columns), as in GPTQ's reference (arXiv 2210.17323).
Pure tensors: no modules, no devices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """One grid per row."""

    scale: Tensor  # (rows, 1)
    zero: Tensor  # (rows, 1), integers in floating point
    maxq: int

    def encode(self, w: Tensor) -> Tensor:
        """The nearest codes of ``w`` (rows, n), clamped to the grid: integers in floating point, (rows, n)."""
        return torch.clamp(torch.round(w / self.scale) + self.zero, 0, self.maxq)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of ``codes``, (rows, n)."""
        return self.scale * (codes - self.zero)

    def snap(self, w: Tensor, codes: Tensor, out: Tensor) -> None:
        """Write the codes of ``w`` (rows,) into ``codes`` and the decoded values into ``out``.

        Gives the same as ``encode`` and ``decode`` without temporaries. The solver does this for every column.
        """
        scale, zero = self.scale[:, 0], self.zero[:, 0]
        torch.div(w, scale, out=out).round_().add_(zero).clamp_(0, self.maxq)
        codes.copy_(out)
        out.sub_(zero).mul_(scale)


MSE_SHRINKS = 80  # candidates: 100%, 99%, ... 21% of the range
MSE_NORM = 2.4  # error exponent of the search, as in the reference


def fit(w: Tensor, bits: int, *, symmetric: bool = False, mse: bool = False, reference: bool = False) -> Grid:
    """The grid of each row of ``w`` (rows, n); it always contains 0. A row of zeros gets scale 2 / maxq.

    ``mse``: shrink the range to minimise Σ |w - ŵ|^2.4 instead of covering all weights (worth it at 2 bits).
    ``symmetric``: the range is [-max|w|, max|w|]. ``reference``: as in GPTQ's code, scales stay in fp32, and the
    symmetric grid of a row without negatives is built for [0, max], which clips the upper half.
    """
    maxq = 2**bits - 1
    low = w.amin(1, keepdim=True).clamp(max=0)
    high = w.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = torch.where(low < 0, -high, low) if reference else -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -torch.ones_like(low), low), torch.where(empty, torch.ones_like(high), high)
    grid = _spanning(low, high, maxq, symmetric, reference)
    return _search(w, grid, low, high, symmetric, reference) if mse else grid


def _spanning(low: Tensor, high: Tensor, maxq: int, symmetric: bool, reference: bool) -> Grid:
    scale = (high - low) / maxq
    if not reference:  # scales are stored in half precision: round them before use, so memory and disk agree
        half = scale.half().to(scale.dtype)
        scale = torch.where((half > 6.2e-5) & torch.isfinite(half), half, scale)
    zero = torch.full_like(scale, (maxq + 1) / 2) if symmetric else torch.round(-low / scale).clamp(0, maxq)
    return Grid(scale, zero, maxq)


def _search(w: Tensor, grid: Grid, low: Tensor, high: Tensor, symmetric: bool, reference: bool) -> Grid:
    """The best of ``MSE_SHRINKS`` shrunken ranges for each row. Among equals the first one wins."""
    scale, zero = grid.scale.clone(), grid.zero.clone()
    best = torch.full_like(scale, torch.inf)
    for i in range(MSE_SHRINKS):
        share = 1 - i / 100
        tried = _spanning(share * low, share * high, grid.maxq, symmetric, reference)
        error = (tried.decode(tried.encode(w)) - w).abs().pow(MSE_NORM).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, tried.scale, scale), torch.where(better, tried.zero, zero)
    return Grid(scale, zero, grid.maxq)
