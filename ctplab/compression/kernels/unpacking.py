"""Packed weights as a dense matrix, in one Triton kernel: it reads each bit once and writes each weight once.

``packing.unpack`` needs two dozen operations and 64-bit words for the same values; it is the reference and the
fallback.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024  # columns a step


@triton.jit
def code_at(Codes, i, ok, BITS: tl.constexpr):
    """Value ``i`` (int64) of a bit stream in which value i takes the bits i·b .. i·b + b - 1; 0 if not ``ok``."""
    bit = i * BITS
    byte = bit // 8
    low = tl.load(Codes + byte, mask=ok, other=0).to(tl.int32)
    if 8 % BITS != 0:  # it may reach into the next byte
        next_one = (bit % 8).to(tl.int32) + BITS > 8
        low |= tl.load(Codes + byte + 1, mask=ok & next_one, other=0).to(tl.int32) << 8
    return (low >> (bit % 8).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit
def kept_at(Mask, i, ok):
    """Bit ``i`` (int64) of a mask, as 0 or 1 (int32)."""
    byte = tl.load(Mask + i // 8, mask=ok, other=0).to(tl.int32)
    return (byte >> (i % 8).to(tl.int32)) & 1


@triton.jit
def _dense(
    Out, Codes, Scale, Zero, Group, Mask, Starts, Values, columns, groups, size,
    BITS: tl.constexpr, MASKED: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of the matrix. ``Starts``: the number of kept weights in the rows before. BITS 0: fp16 values."""
    row = tl.program_id(0).to(tl.int64)
    start = row * columns
    if MASKED:
        seen = tl.load(Starts + row)
    for first in range(0, columns, BLOCK):
        c = first + tl.arange(0, BLOCK)
        ok = c < columns
        place = start + c
        kept = ok
        if MASKED:
            bits = kept_at(Mask, place, ok)
            place = seen + tl.cumsum(bits, 0) - 1
            seen += tl.sum(bits, 0)
            kept = bits > 0
        if BITS == 0:
            w = tl.load(Values + place, mask=kept, other=0.0).to(tl.float32)
        else:
            if ORDERED:
                g = c // size
            else:
                g = tl.load(Group + c, mask=ok, other=0)
            scale = tl.load(Scale + row * groups + g, mask=ok, other=0.0).to(tl.float32)
            zero = tl.load(Zero + row * groups + g, mask=ok, other=0).to(tl.float32)
            w = scale * (code_at(Codes, place, kept, BITS).to(tl.float32) - zero)
            w = tl.where(kept, w, 0.0)
        tl.store(Out + start + c, w.to(Out.dtype.element_ty), mask=ok)


def kept_before(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The number of kept weights in the rows before each row, (out,) int64: ``mask`` has one bit a weight."""
    bits = (mask[:, None] >> torch.arange(8, dtype=torch.uint8, device=mask.device)) & 1
    counts = bits.flatten()[: shape[0] * shape[1]].view(shape).sum(1)
    return counts.cumsum(0) - counts


def dense(
    parts: dict[str, Tensor], bits: int | None, shape: tuple[int, int], dtype: torch.dtype, starts: Tensor | None = None
) -> Tensor:
    """The matrix (out, in) of ``parts`` (see ``packing.pack``), equal to ``packing.unpack``'s to the bit.

    ``starts``: :func:`kept_before` of the mask, if there is one. Nothing here waits for the card.
    """
    rows, columns = shape
    any_part = next(part for name, part in parts.items() if name != "shape")  # stands for parts that are not there
    out = torch.empty(shape, dtype=dtype, device=any_part.device)
    groups = parts["scale"].shape[1] if "scale" in parts else 1
    names = ("codes", "scale", "zero", "group", "mask")
    codes, scale, zero, group, mask = (parts.get(name, any_part) for name in names)
    if "mask" in parts and starts is None:
        starts = kept_before(mask, shape)
    with torch.cuda.device_of(out):  # Triton launches on the current card
        _dense[(rows,)](
            out, codes, scale, zero, group, mask, any_part if starts is None else starts, parts.get("values", any_part),
            columns, groups, columns // groups, BITS=0 if "values" in parts else bits, MASKED="mask" in parts,
            ORDERED="group" not in parts, BLOCK=min(COLUMNS, triton.next_power_of_2(columns)),
        )  # fmt: skip
    return out
