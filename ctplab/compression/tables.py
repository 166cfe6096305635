"""What the column loops read and write: all transposed, so that a column of W is contiguous in memory. Pure tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.compression.grid import Grid


@dataclass(frozen=True)
class Tables:
    """The grids of some columns, transposed."""

    scale: Tensor  # (grids, out)
    zero: Tensor  # (grids, out)
    source: Tensor | None = None
    """(in,) int32: the grid of every column. None: there is one, or one for each group of the piece."""

    @classmethod
    def of(cls, *found: Grid, source: Tensor | None = None) -> "Tables":
        """The tables of grids (out, n), side by side."""
        scale, zero = (torch.cat([getattr(g, name) for g in found], 1).T.contiguous() for name in ("scale", "zero"))
        return cls(scale, zero, source)


@dataclass(frozen=True)
class Work:
    """The matrices of one solve: a column of W is a row here."""

    Wt: Tensor  # (in, out): fixed above the current column, updated below it
    U: Tensor  # (in, in)
    codes: Tensor | None  # (in, out)
    mask: Tensor | None  # (in, out)
