"""Packed weights as a dense matrix, in one Triton kernel: it reads each bit once and writes each weight once.

Kernels decode eight weights of a row at a time, because eight codes of b bits take exactly b bytes. Eights of one row
share loads of codes, and eights of one group load their scale and zero once. Tiles (R, E, 8) hold the eights' weights.

``packing.unpack`` needs two dozen operations and 64-bit words for the same values; it is the reference, and the
fallback for rows that are no whole eights.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

TILE = 128
"""Eights of a row a tile, at most. All kernels take the same tiles, because pruned weights are counted by tile."""
ROWS, WARPS = 1, 4  # of a tile of the dense copy: a thread then decodes one eight and writes 16 bytes
ONE_GRID, ANY_GROUPS = 0, -1  # stand for the size of groups: one grid a row, or a group for each column


@triton.jit
def _grid(Scale, Zero, Group, r, own, e, ok, width, groups, SIZE: tl.constexpr):
    """Scale and zero of the eights e of rows r: (R, 1, 1), (R, E, 1) or (R, E, 8). Zeros are raised by 2^23."""
    if SIZE == 0:  # ONE_GRID
        scale = tl.load(Scale + r, mask=own, other=0.0)[:, None, None]
        zero = tl.load(Zero + r, mask=own, other=0)[:, None, None]
    elif SIZE > 0:
        at = (r * groups)[:, None] + (e * 8 // SIZE)[None, :]
        scale = tl.load(Scale + at, mask=ok, other=0.0)[:, :, None]
        zero = tl.load(Zero + at, mask=ok, other=0)[:, :, None]
    else:  # ANY_GROUPS
        group = tl.load(Group + (e * 8)[:, None] + tl.arange(0, 8)[None, :], mask=(e < width)[:, None], other=0)
        at = (r * groups)[:, None, None] + group[None, :, :]
        scale = tl.load(Scale + at, mask=ok[:, :, None], other=0.0)
        zero = tl.load(Zero + at, mask=ok[:, :, None], other=0)
    return scale.to(tl.float32), zero.to(tl.float32) + 8388608.0


@triton.jit
def decoded(
    Codes, Scale, Zero, Group, Mask, Starts, r, own, tile, width, groups,
    BITS: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The E eights of a tile in rows ``r`` (R,) int64: scales, and code - zero (R, E, 8); both fp32. Pruned: 0.

    ``width``: eights a row. ``Starts``: the number of kept weights before each tile. BITS 0: ``Codes`` are fp16 values,
    which come back with a scale of 1. Rows that are not ``own`` and eights beyond a row hold finite numbers.
    """
    e = tile * E + tl.arange(0, E)
    k = tl.arange(0, 8)[None, None, :]
    ok = own[:, None] & (e < width)[None, :]
    eight = (r * width)[:, None] + e[None, :]
    if MASKED:
        # Spread the eight bits of the mask to the lowest bits of eight nibbles. Then sum: nibble k counts bits 0 .. k.
        bits = tl.load(Mask + eight, mask=ok, other=0).to(tl.uint32)
        bits = (bits | (bits << 12)) & 0x000F000F
        bits = (bits | (bits << 6)) & 0x03030303
        bits = (bits | (bits << 3)) & 0x11111111
        sums = bits + (bits << 4)
        sums += sums << 8
        sums += sums << 16
        count = (sums >> 28).to(tl.int32)
        before = tl.cumsum(count, 1) - count
        start = tl.load(Starts + r * tl.cdiv(width, E) + tile, mask=own, other=0).to(tl.int64)
        kept = ((bits[:, :, None] >> (4 * k)) & 1) > 0
        rank = ((sums << 4)[:, :, None] >> (4 * k)) & 15  # kept weights of the eight that come before this one
    else:
        kept = ok[:, :, None]
    if BITS == 0 or BITS == 8:
        if MASKED:
            at = start[:, None, None] + (before[:, :, None] + rank.to(tl.int32))
        else:
            at = (r * width * 8)[:, None, None] + (e * 8)[None, :, None] + k
        code = tl.load(Codes + at, mask=kept, other=0)
    else:
        if MASKED:
            # The codes of an eight lie side by side, from any bit on: at most b + 1 bytes, of which it loads those
            # that hold a code. Only four bits fill a fifth byte, from bit 4 on.
            bit = start * BITS
            bit_here = (bit & 7).to(tl.int32)[:, None] + before * BITS
            byte = Codes + ((bit >> 3)[:, None] + (bit_here >> 3))
            shift = bit_here & 7
            end = tl.where(count > 0, shift + count * BITS, 0)
            word = tl.load(byte, mask=end > 0, other=0).to(tl.uint32)
            for j in tl.static_range(1, min(BITS + 1, 4)):
                word |= tl.load(byte + j, mask=end > 8 * j, other=0).to(tl.uint32) << (8 * j)
            word = word >> shift.to(tl.uint32)
            if BITS == 4:
                word |= tl.load(byte + 4, mask=end > 32, other=0).to(tl.uint32) << 28
            place = rank * BITS
        else:
            if BITS == 4:
                word = tl.load(Codes.to(tl.pointer_type(tl.uint32)) + eight, mask=ok, other=0)
            elif BITS == 2:
                word = tl.load(Codes.to(tl.pointer_type(tl.uint16)) + eight, mask=ok, other=0).to(tl.uint32)
            else:
                word = tl.load(Codes + eight * BITS, mask=ok, other=0).to(tl.uint32)
                for j in tl.static_range(1, BITS):
                    word |= tl.load(Codes + eight * BITS + j, mask=ok, other=0).to(tl.uint32) << (8 * j)
            place = (k * BITS).to(tl.uint32)
        code = (word[:, :, None] >> place) & (2**BITS - 1)
    if BITS == 0:
        return tl.full((code.shape[0], 1, 1), 1.0, tl.float32), code.to(tl.float32)
    # With the exponent of 2^23, a whole number's bits are that number and 2^23: faster than a conversion, and exact.
    scale, zero = _grid(Scale, Zero, Group, r, own, e, ok, width, groups, SIZE)
    raised = (code.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
    steps = raised - zero
    if MASKED:
        steps = tl.where(kept, steps, 0.0)
    return scale, steps


@triton.jit
def _dense(
    Out, Codes, Scale, Zero, Group, Mask, Starts, rows, width, groups,
    BITS: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """One tile of R rows of the matrix."""
    tiles = tl.cdiv(width, E)
    r = (tl.program_id(0) // tiles * R + tl.arange(0, R)).to(tl.int64)
    tile = tl.program_id(0) % tiles
    scale, steps = decoded(
        Codes, Scale, Zero, Group, Mask, Starts, r, r < rows, tile, width, groups, BITS, MASKED, SIZE, E
    )  # fmt: skip
    c = tile * E * 8 + tl.arange(0, E * 8)
    w = tl.reshape((scale * steps).to(Out.dtype.element_ty), (R, E * 8))
    tl.store(Out + (r * width * 8)[:, None] + c[None, :], w, mask=(r < rows)[:, None] & (c < width * 8)[None, :])


@dataclass(frozen=True, eq=False)
class Matrix:
    """Packed weights as the kernels take them."""

    tensors: tuple[Tensor, ...]  # codes or values, scale, zero, group, mask, starts; the first stands for missing ones
    sizes: tuple[int, int, int]  # rows, eights a row, groups
    kind: dict[str, int]  # what a kernel is compiled for
    launchers: dict[Hashable, Callable[..., None]] = field(default_factory=dict, repr=False)  # see launch

    def __reduce__(self) -> tuple[Any, ...]:
        """Models are copied and saved; a launcher is not."""
        return Matrix, (self.tensors, self.sizes, self.kind)


def matrix(parts: dict[str, Tensor], bits: int | None, shape: tuple[int, int]) -> Matrix | None:
    """``parts`` (see ``packing.pack``) for the kernels; None if rows are no whole eights. Waits for no card."""
    rows, columns = shape
    codes = parts["values" if "values" in parts else "codes"]
    if columns % 8 or codes.data_ptr() % 4:  # codes of eight weights are read as one word of up to 32 bits
        return None
    tile = min(TILE, triton.next_power_of_2(columns // 8))
    found = dict.fromkeys(("codes", "scale", "zero", "group", "mask", "starts"), codes) | parts | {"codes": codes}
    groups, size = 1, ONE_GRID
    if "scale" in parts and (groups := parts["scale"].shape[1]) > 1:
        size = columns // groups
        if "group" not in parts and size % 8:  # eights that reach into the next group
            found["group"] = torch.arange(columns, dtype=torch.int32, device=codes.device) // size
        if "group" in parts or size % 8:
            size = ANY_GROUPS
    if "mask" in parts:
        found["starts"] = kept_before(parts["mask"], shape, tile)
    tensors = tuple(found[name].contiguous() for name in ("codes", "scale", "zero", "group", "mask", "starts"))
    kind = {"BITS": 0 if "values" in parts else bits or 0, "MASKED": int("mask" in parts), "SIZE": size, "E": tile}
    return Matrix(tensors, (rows, columns // 8, groups), kind)


def kept_before(mask: Tensor, shape: tuple[int, int], tile: int) -> Tensor:
    """The number of kept weights before each tile of ``tile`` eights, (out, tiles): ``mask`` has one bit a weight."""
    rows, columns = shape
    counts = torch.zeros(256, dtype=torch.int32, device=mask.device)
    for i in range(8):
        counts += (torch.arange(256, device=mask.device) >> i & 1).int()
    counts = nn.functional.pad(counts[mask.int()].view(rows, columns // 8), (0, -(columns // 8) % tile))
    counts = counts.view(rows, -1, tile).sum(2)  # int64
    before = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape)
    return before.int() if rows * columns < 2**31 else before


def dense(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix (out, in), equal to ``packing.unpack``'s to the bit."""
    rows, width, _ = matrix.sizes
    out = torch.empty(rows, width * 8, dtype=dtype, device=matrix.tensors[0].device)
    tiles = -(-rows // ROWS) * -(-width // matrix.kind["E"])
    launch(matrix, dtype, _dense, tiles, (out, *matrix.tensors, *matrix.sizes), {"R": ROWS, "num_warps": WARPS})
    return out


past_look_up = True
"""Whether a kernel that was found once is launched by itself; ``usable`` tries it on each card."""


def launch(
    matrix: Matrix, key: Hashable, kernel: Any, programs: int, parts: tuple[Any, ...], settings: dict[str, int]
) -> None:
    """``kernel[(programs,)](*parts, **matrix.kind, **settings)``, on the card of ``parts[0]``.

    Triton asks every argument for its type, alignment and value to find the kernel that it compiled for such ones. For
    one matrix they are always the same, but for what ``key`` says. So from the second time on this launches the kernel
    that was found first, which is what Triton's own launch ends with (the same in 3.6, 3.7 and 3.9).
    """
    with torch.cuda.device_of(parts[0]):  # Triton launches on the current card
        if past_look_up and key in matrix.launchers:
            matrix.launchers[key](*parts)
            return
        settings = matrix.kind | settings
        found = kernel[(programs,)](*parts, **settings)
        if found is not None and torch.version.hip is None:  # the interpreter finds none; AMD's depends on more
            constants = [settings[name] for name in kernel.arg_names[len(parts) :]]
            run = found[(programs, 1, 1)]
            matrix.launchers[key] = lambda *parts: run(*parts, *constants)
