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


MSE_SHRINKS = 80  # candidates: 100%, 99%, ... 21% of the range
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}  # weights x candidates: what a cache holds; what keeps a card busy
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
    most = AT_ONCE["cuda" if w.is_cuda else "cpu"]
    shares = torch.tensor([1 - i / 100 for i in range(MSE_SHRINKS)], dtype=w.dtype, device=w.device)
    scale, zero = grid.scale.clone(), grid.zero.clone()
    n = w.shape[1]
    step = max(1, most // n)
    for start in range(0, len(w), step):
        own = slice(start, start + step)
        best = torch.full_like(scale[own], torch.inf)
        for some in shares.split(max(1, most // (n * min(step, len(w))))):
            tried = _spanning(low[own] * some, high[own] * some, grid.maxq, symmetric, reference)  # (rows, some)
            each = Grid(tried.scale[..., None], tried.zero[..., None], grid.maxq)
            error = (each.decode(each.encode(w[own, None])) - w[own, None]).abs().pow(MSE_NORM).sum(2)
            at = error.argmin(1, keepdim=True)
            better = error.gather(1, at) < best
            best = torch.where(better, error.gather(1, at), best)
            scale[own] = torch.where(better, tried.scale.gather(1, at), scale[own])
            zero[own] = torch.where(better, tried.zero.gather(1, at), zero[own])
    return Grid(scale, zero, grid.maxq)
