"""A quantised matrix whose codes move: each kept weight has a latent offset u, and its code is rounded on every pass.

    c' = clamp(round(c + size·u), 0, maxq)        w = scale·(c' - zero)

Rounding has no slope, so its gradient is taken for that of a straight line (the straight-through estimator, arXiv
1308.3432): with respect to u it is that of w times scale·size inside the grid, and 0 for codes that it cuts off. A
pruned weight keeps its grid's zero, whatever its u.

Each u starts where the full model's weight lies in the cell of its code, so codes that rounding nearly put elsewhere
move first. Weights outside the cell (the solver makes up for earlier errors with later codes) start near its edge. If
the full model is not there, each starts in the middle. Either way no code has moved at first, and the matrix is the
compressed one to the bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.compression.packing import full_codes, group_of, kept_of

SIZE = 0.05
"""How many steps of the grid a code moves for each unit of u, before it is rounded."""
EDGE = 0.45
"""How far from the middle of its cell, in steps of the grid, a code may start; the cell ends at a half."""


class _Rounded(torch.autograd.Function):
    """The nearest integers; the gradient passes as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def rounded(x: Tensor) -> Tensor:
    """The nearest integers of ``x``, with the slope of ``x``."""
    found = _Rounded.apply(x)
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True)
class Codes:
    """The codes of a quantised matrix on its device, and the grids that they stand on."""

    codes: Tensor  # (out, in) uint8
    scale: Tensor  # (out, groups) fp32
    zero: Tensor  # (out, groups) fp32
    group: Tensor | None  # (in,), if there is more than one group
    kept: Tensor | None  # (out, in) bool, if the matrix is pruned
    maxq: int

    @classmethod
    def of(cls, parts: dict[str, Tensor], bits: int, device: torch.device) -> "Codes":
        """Decode the packed ``parts`` of a matrix (see ``compression/packing``)."""
        codes, scale, zero = (x.to(device) for x in (full_codes(parts, bits), parts["scale"], parts["zero"]))
        group = group_of(parts).to(device) if scale.shape[1] > 1 else None
        kept = kept_of(parts).to(device) if "mask" in parts else None
        return cls(codes, scale.float(), zero.float(), group, kept, 2**bits - 1)

    def moved(self, u: Tensor) -> Tensor:
        """The codes for u (out, in): integers in floating point, with a gradient."""
        offset = SIZE * (u if self.kept is None else u * self.kept)
        return rounded(self.codes + offset).clamp(0, self.maxq)

    def weight(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix for u, (out, in)."""
        scale, zero = self._grids()
        return (scale * (self.moved(u) - zero)).to(dtype)

    def _grids(self) -> tuple[Tensor, Tensor]:
        """Scale and zero of each weight: (out, in), or (out, 1) if a row is one group."""
        if self.group is None:
            return self.scale, self.zero
        return self.scale[:, self.group], self.zero[:, self.group]

    @torch.no_grad()
    def start(self, full: Tensor) -> Tensor:
        """The u (out, in) at which no code has moved and each is as near to the ``full`` weight as its cell allows."""
        scale, zero = self._grids()
        inside = (full.to(scale) / scale + zero - self.codes).clamp(-EDGE, EDGE)
        offset = inside.nan_to_num(0) / SIZE  # a grid of one value has no cells
        return offset if self.kept is None else offset * self.kept

    @torch.no_grad()
    def steps(self, u: Tensor) -> Tensor:
        """By how many steps of its grid each code has moved, (out, in) int16 on the CPU."""
        u = u.to(self.codes.device)
        return (self.moved(u) - self.codes).to(torch.int16).cpu()
