"""Affine integer grids: w = scale * (code - zero), codes 0 .. 2^bits - 1, an integer zero so that 0 stays exact.

Objective: the smallest grid that covers each row (or group of columns), as GPTQ's reference (arXiv 2210.17323).
Pure tensors: no modules, no devices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """One grid a row."""

    scale: Tensor  # (rows, 1)
    zero: Tensor  # (rows, 1), integers in floating point
    maxq: int

    def encode(self, w: Tensor) -> Tensor:
        """Nearest codes of ``w`` (rows, n), clamped to the grid; float integers (rows, n)."""
        return torch.clamp(torch.round(w / self.scale) + self.zero, 0, self.maxq)

    def decode(self, codes: Tensor) -> Tensor:
        """Values of ``codes``, (rows, n)."""
        return self.scale * (codes - self.zero)


def fit(w: Tensor, bits: int, symmetric: bool = False) -> Grid:
    """The min-max grid of each row of ``w`` (rows, n); it always contains 0.

    A symmetric grid spans [-max|w|, max|w|] for every row. (The reference clips rows without negatives at half
    their range; that is a slip there, not a rule.) A row of zeros gets scale 2 / maxq.
    """
    maxq = 2**bits - 1
    low = w.amin(1, keepdim=True).clamp(max=0)
    high = w.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -torch.ones_like(low), low), torch.where(empty, torch.ones_like(high), high)
    # Scales live on disk in half precision: round them before they are used, so that memory and disk agree.
    scale = (high - low) / maxq
    half = scale.half().to(w.dtype)
    scale = torch.where((half > 6.2e-5) & torch.isfinite(half), half, scale)
    zero = torch.full_like(scale, (maxq + 1) / 2) if symmetric else torch.round(-low / scale).clamp(0, maxq)
    return Grid(scale, zero, maxq)
