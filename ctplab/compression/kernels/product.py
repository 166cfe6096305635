"""x Wᵀ of a few tokens with packed weights, in one Triton kernel: it reads the packed bits and no dense matrix.

A program computes some outputs for some tokens. It walks along the columns, decodes a tile of weights, and multiplies.
For many tokens a dense copy and the library's product are faster: the copy then costs little beside the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctplab.compression.kernels.unpacking import Matrix, decoded

TOKENS = 16
"""The largest number of tokens. Not measured yet."""
ROWS = {1: 4, 2: 4, 4: 4, 8: 2}  # rows of W a program, by its tokens: each thread keeps a sum for each pair
WARPS = 4


@triton.jit
def _product(
    X, Out, Codes, Scale, Zero, Group, Mask, Starts, tokens, rows, width, groups,
    BITS: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Outputs of R rows of W for T tokens. See ``unpacking`` for the other arguments.

    It multiplies eights in registers: tensor cores would need the weights in another order, and the decoding takes
    longer than the multiplication. A group's scale multiplies the sum of an eight, not its weights.
    """
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    t = tl.program_id(1) * T + tl.arange(0, T)
    total = tl.zeros((T, R, E), tl.float32)
    for tile in range(0, tl.cdiv(width, E)):
        scale, steps = decoded(
            Codes, Scale, Zero, Group, Mask, Starts, r, r < rows, tile, width, groups, BITS, MASKED, SIZE, E
        )  # fmt: skip
        c = tile * E * 8 + tl.arange(0, E * 8)
        x = tl.load(
            X + (t * width * 8)[:, None] + c[None, :], mask=(t < tokens)[:, None] & (c < width * 8)[None, :], other=0.0
        )
        x = tl.reshape(x.to(tl.float32), (T, 1, E, 8))
        if SIZE < 0:  # ANY_GROUPS: a scale for each weight
            total += tl.sum((scale * steps)[None, :, :, :] * x, 3)
        else:
            total += tl.sum(steps[None, :, :, :] * x, 3) * tl.reshape(scale, (1, scale.shape[0], scale.shape[1]))
    at = t[:, None] * rows + r[None, :]
    tl.store(Out + at, tl.sum(total, 2).to(Out.dtype.element_ty), mask=(t < tokens)[:, None] & (r < rows)[None, :])


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x (..., in), at most fp32 -> (..., out), for at most ``TOKENS`` tokens; sums in fp32."""
    rows, width, _ = matrix.sizes
    tokens = x.numel() // (width * 8)
    t = 1 if tokens == 1 else 2 if tokens == 2 else 4 if tokens <= 4 else 8
    out = x.new_empty(*x.shape[:-1], rows)
    grid = (-(-rows // ROWS[t]), -(-tokens // t))
    with torch.cuda.device_of(out):  # Triton launches on the current card
        _product[grid](
            x.contiguous(), out, *matrix.tensors, tokens, *matrix.sizes, **matrix.kind, R=ROWS[t], T=t, num_warps=WARPS
        )
    return out
