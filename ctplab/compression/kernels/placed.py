"""Rows of queries, keys and values on their way into attention and out of it, in one Triton kernel each way.

A step's rows stand one after the other: k of the prefix, then B texts of T. Attention wants B sequences, each with the
prefix in front. ``placed`` puts the rows there and turns them by their positions' angles on the way; ``taken`` brings
the outputs back. Written in operations of torch, the turn, the copies and their gradients read and write everything a
dozen times.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Turn = tuple[Tensor, Tensor]
"""cos and sin (rows or a divisor of them, D): row r of x is turned by the angles of row r modulo their number."""


@triton.jit
def _halves(X, at, h, j, stride, ok, D: tl.constexpr):
    """The two halves (heads, D / 2) of the heads ``h`` of one row, which begins at ``at``."""
    places = at + h[:, None] * stride + j[None, :]
    low = tl.load(X + places, mask=ok, other=0.0).to(tl.float32)
    return low, tl.load(X + places + D // 2, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _put(Out, at, h, j, low, high, ok, D: tl.constexpr):
    places = at + h[:, None] * D + j[None, :]
    tl.store(Out + places, low.to(Out.dtype.element_ty), mask=ok)
    tl.store(Out + places + D // 2, high.to(Out.dtype.element_ty), mask=ok)


@triton.jit
def _turned(low, high, Cos, Sin, row, j, D: tl.constexpr, BACK: tl.constexpr):
    """(low, high) turned by the angles of ``row``: x cos + (-high, low) sin; or the transpose of that."""
    ok = j < D // 2
    c0 = tl.load(Cos + row * D + j, mask=ok, other=0.0).to(tl.float32)[None, :]
    c1 = tl.load(Cos + row * D + D // 2 + j, mask=ok, other=0.0).to(tl.float32)[None, :]
    s0 = tl.load(Sin + row * D + j, mask=ok, other=0.0).to(tl.float32)[None, :]
    s1 = tl.load(Sin + row * D + D // 2 + j, mask=ok, other=0.0).to(tl.float32)[None, :]
    if BACK:
        return low * c0 + high * s1, high * c1 - low * s0
    return low * c0 - high * s0, high * c1 + low * s1


@triton.jit
def _spread(
    X, Out, Cos, Sin, k, length, heads, row_stride, angles,
    TURN: tl.constexpr, FIRST: tl.constexpr, D: tl.constexpr, H: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Row t of text b in ``Out`` (B, k + T, heads, D). FIRST: only the first text gets the prefix, the others zeros."""
    b, t = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    row = tl.where(t < k, t, b * length + t)
    h, j = tl.arange(0, H), tl.arange(0, J)
    ok = (h < heads)[:, None] & (j < D // 2)[None, :]
    read = ok
    if FIRST:
        read = (h < tl.where((t >= k) | (b == 0), heads, 0))[:, None] & (j < D // 2)[None, :]
    low, high = _halves(X, row * row_stride, h, j, D, read, D)
    if TURN:
        low, high = _turned(low, high, Cos, Sin, row % angles, j, D, False)
    _put(Out, (b * (k + length) + t) * heads * D, h, j, low, high, ok, D)


@triton.jit
def _gather(
    X, Out, Cos, Sin, k, length, batch, heads, text_stride, place_stride, head_stride, angles,
    TURN: tl.constexpr, SUM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Row r of ``Out`` (k + B T, heads, D). A prefix row is that of the first text, or with SUM that of all texts."""
    row = tl.program_id(0).to(tl.int64)
    own = row >= k
    b = tl.where(own, (row - k) // length, 0)
    t = tl.where(own, k + (row - k) % length, row)
    h, j = tl.arange(0, H), tl.arange(0, J)
    ok = (h < heads)[:, None] & (j < D // 2)[None, :]
    at = b * text_stride + t * place_stride
    low, high = _halves(X, at, h, j, head_stride, ok, D)
    if SUM:
        for other in range(1, tl.where(own, 1, batch)):
            more = _halves(X, at + other * text_stride, h, j, head_stride, ok, D)
            low += more[0]
            high += more[1]
    if TURN:
        low, high = _turned(low, high, Cos, Sin, row % angles, j, D, True)
    _put(Out, row * heads * D, h, j, low, high, ok, D)


Layout = tuple[int, int, int]
"""k, B, T."""


def _sizes(heads: int, d: int) -> dict[str, int]:
    return {"D": d, "H": triton.next_power_of_2(heads), "J": triton.next_power_of_2(d // 2)}


def _spread_out(x: Tensor, layout: Layout, turn: Turn | None, first: bool) -> Tensor:
    (k, batch, length), (_, heads, d) = layout, x.shape
    out = torch.empty(batch, k + length, heads, d, dtype=x.dtype, device=x.device)
    cos, sin = turn or (x, x)  # stand for tensors that this variant does not touch
    with torch.cuda.device_of(x):  # Triton launches on the current card
        _spread[(k + length, batch)](
            x, out, cos, sin, k, length, heads, x.stride(0), len(cos), TURN=turn is not None, FIRST=first,
            **_sizes(heads, d),
        )  # fmt: skip
    return out.transpose(1, 2)


def _gathered(x: Tensor, layout: Layout, turn: Turn | None, total: bool) -> Tensor:
    (k, batch, length), (_, heads, _, d) = layout, x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    out = torch.empty(k + batch * length, heads, d, dtype=x.dtype, device=x.device)
    cos, sin = turn or (x, x)
    with torch.cuda.device_of(x):  # Triton launches on the current card
        _gather[(len(out),)](
            x, out, cos, sin, k, length, batch, heads, x.stride(0), x.stride(2), x.stride(1), len(cos),
            TURN=turn is not None, SUM=total, **_sizes(heads, d),
        )  # fmt: skip
    return out


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, turn: Turn | None) -> Tensor:
        ctx.layout, ctx.turn = layout, turn
        return _spread_out(x, layout, turn, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(grads[0], ctx.layout, ctx.turn, True), None, None


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return _gathered(x, layout, None, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _spread_out(grads[0].contiguous(), ctx.layout, None, True), None


def placed(x: Tensor, layout: Layout, turn: Turn | None = None) -> Tensor:
    """Rows (k + B T, heads, D), each contiguous, -> (B, heads, k + T, D), with the prefix in front of every text.

    ``turn``: rotary positions. Sums in fp32, rounded once.
    """
    return _Placed.apply(x, layout, turn)


def taken(x: Tensor, layout: Layout) -> Tensor:
    """(B, heads, k + T, D) -> rows (k + B T, heads, D). The prefix's rows are those in front of the first text."""
    return _Taken.apply(x, layout)
