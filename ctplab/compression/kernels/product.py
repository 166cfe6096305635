"""x Wᵀ of a few tokens with packed weights, in one Triton kernel: it reads the packed bits and no dense matrix.

A program computes some outputs for all tokens. It walks along the columns, unpacks a tile of weights, and multiplies.
For many tokens a dense copy and the library's product are faster: the copy then costs little beside the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctplab.compression.kernels.unpacking import code_at, kept_at

TOKENS = 16
"""The largest number of tokens: one tile of a tensor core. Not measured yet."""
OUTPUTS, COLUMNS = 32, 128  # of W, a program and a step


@triton.jit
def _product(
    X, Out, Codes, Scale, Zero, Group, Mask, Starts, Values, tokens, rows, columns, groups, size,
    BITS: tl.constexpr, MASKED: tl.constexpr, ORDERED: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Outputs of R rows of W. See ``unpacking`` for the other arguments."""
    t = tl.arange(0, T)
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    own = r < rows
    total = tl.zeros((T, R), tl.float32)
    if MASKED:
        seen = tl.load(Starts + r, mask=own, other=0)
    for first in range(0, columns, C):
        c = first + tl.arange(0, C)
        ok = own[:, None] & (c < columns)[None, :]
        place = r[:, None] * columns + c[None, :]
        kept = ok
        if MASKED:
            bits = kept_at(Mask, place, ok)
            place = seen[:, None] + tl.cumsum(bits, 1) - 1
            seen += tl.sum(bits, 1)
            kept = bits > 0
        if BITS == 0:
            w = tl.load(Values + place, mask=kept, other=0.0).to(tl.float32)
        else:
            if ORDERED:
                g = c // size
            else:
                g = tl.load(Group + c, mask=c < columns, other=0)
            at = r[:, None] * groups + g[None, :]
            scale = tl.load(Scale + at, mask=ok, other=0.0).to(tl.float32)
            zero = tl.load(Zero + at, mask=ok, other=0).to(tl.float32)
            w = tl.where(kept, scale * (code_at(Codes, place, kept, BITS).to(tl.float32) - zero), 0.0)
        x = tl.load(
            X + t[:, None] * columns + c[None, :], mask=(t < tokens)[:, None] & (c < columns)[None, :], other=0.0
        )
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    where = t[:, None] * rows + r[None, :]
    tl.store(Out + where, total.to(Out.dtype.element_ty), mask=(t < tokens)[:, None] & own[None, :])


def product(
    x: Tensor, parts: dict[str, Tensor], bits: int | None, shape: tuple[int, int], starts: Tensor | None
) -> Tensor:
    """x (tokens, in) -> (tokens, out), for at most ``TOKENS`` tokens; sums in fp32. ``starts``: as for ``dense``."""
    (tokens, columns), rows = x.shape, shape[0]
    any_part = next(part for name, part in parts.items() if name != "shape")
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    groups = parts["scale"].shape[1] if "scale" in parts else 1
    names = ("codes", "scale", "zero", "group", "mask")
    _product[(triton.cdiv(rows, OUTPUTS),)](
        x.contiguous(), out, *(parts.get(name, any_part) for name in names), any_part if starts is None else starts,
        parts.get("values", any_part), tokens, rows, columns, groups, columns // groups,
        BITS=0 if "values" in parts else bits, MASKED="mask" in parts, ORDERED="group" not in parts,
        T=TOKENS, R=OUTPUTS, C=COLUMNS,
    )  # fmt: skip
    return out
