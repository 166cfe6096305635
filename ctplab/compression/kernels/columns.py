"""The column loop of ``compression/obs`` as one Triton kernel: it fixes up to 128 columns of a tile of rows at once.

Rows are independent. So a program holds its tile of W in registers, fixes column after column, and spreads each error
over the rest of the tile. It writes what the loop in ``obs`` writes: values, codes, zeros, errors, and the grids that
it fitted. The loop launches a handful of kernels for each of thousands of columns; this is one launch for 128 of them.
Sums are computed in another order than there, so a code may differ if a value lies on a rounding edge.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctplab.compression.grid import MSE_NORM, MSE_SHRINKS
from ctplab.compression.tables import Tables, Work
from ctplab.specs import CompressionSpec

ROWS = 16  # rows of W a program: the fastest of 8, 16 and 32 on an H200, or equal to it
ROUND = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it rounds to whole numbers, half to even, if |x| < 2^22
SMALLEST_HALF = tl.constexpr(6.2e-5)  # as in ``grid``: below it, half precision loses digits

NO_GRID, ONE_GRID, OWN_GRIDS, FIT = range(4)
NO_MASK, GIVEN_MASK, PATTERN = range(3)


@triton.jit
def _spanning(low, high, maxq, SYMMETRIC: tl.constexpr):
    """``grid._spanning``: the scale and the zero of the range from low to high."""
    scale = tl.div_rn(high - low, maxq + tl.zeros_like(low))
    half = scale.to(tl.float16).to(tl.float32)
    scale = tl.where((half > SMALLEST_HALF) & (half < float("inf")), half, scale)
    if SYMMETRIC:
        zero = tl.zeros_like(low) + (maxq + 1) / 2
    else:
        zero = (tl.div_rn(-low, scale) + ROUND) - ROUND
        zero = tl.minimum(tl.maximum(zero, 0.0), maxq)
    return scale, zero


@triton.jit
def _codes(w, scale, zero, maxq):
    """``Grid.encode``: the nearest codes."""
    code = (tl.div_rn(w, scale) + ROUND) - ROUND + zero
    return tl.minimum(tl.maximum(code, 0.0), maxq)


@triton.jit
def _fitted(tile, inside, maxq, SYMMETRIC: tl.constexpr, SHRINKS: tl.constexpr, NORM: tl.constexpr):
    """``grid.fit`` of the columns ``inside`` a tile (columns, rows): scale and zero (rows,)."""
    low = tl.minimum(tl.min(tl.where(inside[:, None], tile, 0.0), 0), 0.0)
    high = tl.maximum(tl.max(tl.where(inside[:, None], tile, 0.0), 0), 0.0)
    if SYMMETRIC:
        high = tl.maximum(high, -low)
        low = -high
    empty = (low == 0.0) & (high == 0.0)
    low = tl.where(empty, -1.0, low)
    high = tl.where(empty, 1.0, high)
    scale, zero = _spanning(low, high, maxq, SYMMETRIC)
    if SHRINKS > 0:
        best = tl.zeros_like(low) + float("inf")
        for i in range(SHRINKS):
            share = tl.div_rn(100.0 - i + tl.zeros_like(low), 100.0 + tl.zeros_like(low))
            tried, at = _spanning(share * low, share * high, maxq, SYMMETRIC)
            code = _codes(tile, tried[None, :], at[None, :], maxq)
            error = tl.abs(tried[None, :] * (code - at[None, :]) - tile)
            counts = inside[:, None] & (error > 0.0)
            power = tl.exp2(NORM * tl.log2(tl.where(counts, error, 1.0)))
            total = tl.sum(tl.where(counts, power, 0.0), 0)
            better = total < best
            best = tl.where(better, total, best)
            scale = tl.where(better, tried, scale)
            zero = tl.where(better, at, zero)
    return scale, zero


@triton.jit
def _lowest(tile, diagonal, idx, start, n, zeros, M: tl.constexpr):
    """Which of the columns start .. start + M - 1 have one of the ``zeros`` least saliencies in their row."""
    score = tl.div_rn(tile * tile, (diagonal * diagonal)[:, None] + tl.zeros_like(tile))
    rank = tl.zeros_like(tile)
    for j in range(M):
        other = tl.sum(tl.where((idx == start + j)[:, None], score, 0.0), 0)[None, :]
        before = (other < score) | ((other == score) & (start + j < idx[:, None]))
        rank += tl.where(before & (start + j < n), 1.0, 0.0)
    return ((idx >= start) & (idx < start + M))[:, None] & (rank < zeros)


@triton.jit
def _fix(
    Wt, U, Err, Codes, Mask, Scale, Zero, Source,
    rows, first, n, ldu, group, zeros, maxq,
    GRID: tl.constexpr, MASK: tl.constexpr, M: tl.constexpr, HALF: tl.constexpr, SYMMETRIC: tl.constexpr,
    SHRINKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Fix columns first .. first + n - 1 of W, transposed: (columns, rows)."""
    r = tl.program_id(0) * R + tl.arange(0, R)
    ok = r < rows
    idx = tl.arange(0, BLOCK)
    real = (idx < n)[:, None] & ok[None, :]
    places = (first + idx)[:, None] * rows + r[None, :]
    tile = tl.load(Wt + places, mask=real, other=0.0)
    diagonal = tl.load(U + (first + idx) * (ldu + 1), mask=idx < n, other=1.0)
    scale = tl.zeros_like(r).to(tl.float32) + 1.0
    zero = tl.zeros_like(r).to(tl.float32)
    if GRID == 1:  # ONE_GRID
        scale = tl.load(Scale + r, mask=ok, other=1.0)
        zero = tl.load(Zero + r, mask=ok, other=0.0)
    if MASK == 2:  # PATTERN
        pruned = real & (idx < 0)[:, None]
    for i in range(n):
        here = idx == i
        if GRID == 2:  # OWN_GRIDS
            own = tl.load(Source + first + i)
            scale = tl.load(Scale + own * rows + r, mask=ok, other=1.0)
            zero = tl.load(Zero + own * rows + r, mask=ok, other=0.0)
        if GRID == 3:  # FIT
            if i % group == 0:
                inside = (idx >= i) & (idx < i + group) & (idx < n)
                scale, zero = _fitted(tile, inside, maxq, SYMMETRIC, SHRINKS, NORM)
                tl.store(Scale + (i // group) * rows + r, scale, mask=ok)
                tl.store(Zero + (i // group) * rows + r, zero, mask=ok)
        w = tl.sum(tl.where(here[:, None], tile, 0.0), 0)
        v = w
        if MASK == 1:  # GIVEN_MASK
            v = tl.where(tl.load(Mask + (first + i) * rows + r, mask=ok, other=0) != 0, 0.0, w)
        if MASK == 2:  # PATTERN
            if i % M == 0:
                pruned = pruned | _lowest(tile, diagonal, idx, i, n, zeros, M)
            v = tl.where(tl.sum(tl.where(here[:, None] & pruned, 1, 0), 0) > 0, 0.0, w)
        if GRID != 0:  # NO_GRID
            code = _codes(v, scale, zero, maxq)
            tl.store(Codes + (first + i) * rows + r, code.to(tl.uint8), mask=ok)
            v = scale * (code - zero)
        if HALF:
            v = v.to(tl.float16).to(tl.float32)
        err = tl.div_rn(w - v, tl.load(U + (first + i) * (ldu + 1)) + tl.zeros_like(w))
        u = tl.load(U + (first + i) * ldu + first + idx, mask=(idx > i) & (idx < n), other=0.0)
        tile = tl.where(here[:, None], v[None, :], tile) - u[:, None] * err[None, :]
        tl.store(Err + i * rows + r, err, mask=ok)
    tl.store(Wt + places, tile, mask=real)
    if MASK == 2:  # PATTERN
        tl.store(Mask + places, pruned.to(tl.uint8), mask=real)


def fix(
    work: Work, first: int, Err: Tensor, tables: Tables | None, spec: CompressionSpec, fits: int | None = None
) -> None:
    """Do what ``compression/columns`` does to ``len(Err)`` columns from ``first`` on: at most 128, whole patterns.

    ``fits``: fit a grid every so many columns, and write it into ``tables``; None: use the grids that are there.
    """
    n, rows = Err.shape
    grid = NO_GRID if tables is None else FIT if fits else ONE_GRID if tables.source is None else OWN_GRIDS
    kind = NO_MASK if work.mask is None else PATTERN if spec.pattern else GIVEN_MASK
    zeros, m = spec.n_m
    with torch.cuda.device_of(Err):  # Triton launches on the current card
        _fix[(triton.cdiv(rows, ROWS),)](
            work.Wt, work.U, Err,
            Err if work.codes is None else work.codes,  # stands for a tensor that this variant does not touch
            Err if work.mask is None else work.mask.view(torch.uint8),
            *((Err, Err) if tables is None else (tables.scale, tables.zero)),
            Err if tables is None or tables.source is None else tables.source,
            rows, first, n, work.U.stride(0), fits or 1, zeros, float(2 ** (spec.bits or 1) - 1),
            GRID=grid, MASK=kind, M=m or 1, HALF=kind != NO_MASK and grid == NO_GRID and not spec.reference,
            SYMMETRIC=spec.symmetric, SHRINKS=MSE_SHRINKS if spec.mse else 0, NORM=MSE_NORM,
            BLOCK=triton.next_power_of_2(n), R=ROWS,
        )  # fmt: skip
