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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.compression.packing import full_codes, group_of, kept_of

SIZE = 0.05
"""How many steps of the grid a code moves for each unit of u, before it is rounded."""
TILE = 2**16
"""Weights that a CPU works on at a time."""
EDGE = 0.45
"""How far from the middle of its cell, in steps of the grid, a code may start; the cell ends at a half."""


@dataclass(frozen=True)
class Codes:
    """The codes of a quantised matrix on its device, and the grids that they stand on."""

    codes: Tensor  # (out, in) uint8
    scale: Tensor  # (out, groups) fp32
    zero: Tensor  # (out, groups) fp32
    group: Tensor | None  # (in,), if there is more than one group
    kept: Tensor | None  # (out, in) bool, if the matrix is pruned; pruned weights have their grid's zero as code
    maxq: int

    @classmethod
    def of(cls, parts: dict[str, Tensor], bits: int, device: torch.device) -> "Codes":
        """Decode the packed ``parts`` of a matrix (see ``compression/packing``)."""
        codes, scale, zero = (x.to(device) for x in (full_codes(parts, bits), parts["scale"], parts["zero"]))
        group = group_of(parts).to(device) if scale.shape[1] > 1 else None
        kept = kept_of(parts).to(device) if "mask" in parts else None
        return cls(codes, scale.float(), zero.float(), group, kept, 2**bits - 1)

    def weight(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix (out, in) for u (out, in), with a gradient."""
        found = _Weight.apply(u, self, dtype)
        assert isinstance(found, Tensor)
        return found

    def _tiles(self) -> Iterator[slice]:
        """Rows to work on at a time: on a CPU as many as stay in its cache."""
        rows, columns = self.codes.shape
        several = rows if self.codes.device.type != "cpu" else max(1, TILE // columns)
        for first in range(0, rows, several):
            yield slice(first, first + several)

    def _grids(self, at: slice) -> tuple[Tensor, Tensor]:
        """Scale and zero of each weight of these rows: (rows, in), or (rows, 1) if a row is one group."""
        scale, zero = self.scale[at], self.zero[at]
        if self.group is None:
            return scale, zero
        return scale.index_select(1, self.group), zero.index_select(1, self.group)

    def _rounded(self, u: Tensor, at: slice) -> Tensor:
        """The codes of these rows as u moves them, integers in floating point; they may lie outside the grid."""
        return self.codes[at].to(u.dtype).add_(self._kept(u[at], at), alpha=SIZE).round_()

    def _kept(self, x: Tensor, at: slice) -> Tensor:
        """``x`` of these rows, with 0 for pruned weights. A product: on a CPU booleans are ten times as slow."""
        return x if self.kept is None else self.kept[at].to(x.dtype).mul_(x)

    @torch.no_grad()
    def _forward(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        found = torch.empty(u.shape, dtype=dtype, device=u.device)
        for at in self._tiles():
            scale, zero = self._grids(at)
            found[at] = self._rounded(u, at).clamp_(0, self.maxq).sub_(zero).mul_(scale)
        return found

    @torch.no_grad()
    def _backward(self, u: Tensor, grad: Tensor) -> Tensor:
        found = torch.empty_like(u)
        for at in self._tiles():
            slope = self._kept(grad[at].to(u.dtype), at).mul(self._grids(at)[0] * SIZE)
            # 0 for codes that the grid cuts off: they are integers, so none lies on these ends
            found[at] = torch.ops.aten.hardtanh_backward(slope, self._rounded(u, at), -0.5, self.maxq + 0.5)
        return found

    @torch.no_grad()
    def start(self, full: Tensor) -> Tensor:
        """The u (out, in) at which no code has moved and each is as near to the ``full`` weight as its cell allows."""
        scale, zero = self._grids(slice(None))
        inside = (full.to(scale) / scale + zero - self.codes).clamp(-EDGE, EDGE)
        offset = inside.nan_to_num(0) / SIZE  # a grid of one value has no cells
        return offset if self.kept is None else offset * self.kept

    @torch.no_grad()
    def steps(self, u: Tensor) -> Tensor:
        """By how many steps of its grid each code has moved, (out, in) int16 on the CPU."""
        moved = self._rounded(u.to(self.codes.device), slice(None)).clamp_(0, self.maxq)
        return (moved - self.codes).to(torch.int16).cpu()


class _Weight(torch.autograd.Function):
    """:meth:`Codes.weight`. The backward pass rounds u once more, so that autograd keeps nothing but u."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, codes: Codes, dtype: torch.dtype) -> Tensor:
        ctx.codes = codes
        ctx.save_for_backward(u)
        return codes._forward(u, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return ctx.codes._backward(u, grads[0]), None, None
