"""x Wᵀ of a few tokens with packed weights, in one Triton kernel: it reads the packed bits and no dense matrix.

A program computes some outputs for some tokens. It walks along the columns, decodes a tile of weights, and multiplies.
For many tokens a dense copy and the library's product are faster: the copy then costs little beside the product.
"""

import triton
import triton.language as tl
from torch import Tensor

from ctplab.compression.kernels.unpacking import Matrix, decoded, launch

TOKENS, TOKENS_PRUNED = 16, 4
"""The largest numbers of tokens: one tile of a tensor core, and what is multiplied without them."""
FEW = 4  # tokens that are multiplied without tensor cores
FEW_TILE = {"R": 4, "num_warps": 4}
MORE_TILE = {"R": 16, "E": 16, "T": 16, "num_warps": 2, "num_stages": 3}


@triton.jit
def _columns(X, t, tokens, tile, width, E: tl.constexpr):
    """The columns of x that the E eights of a tile meet, (T, 8 E)."""
    c = tile * E * 8 + tl.arange(0, E * 8)
    ok = (t < tokens)[:, None] & (c < width * 8)[None, :]
    return tl.load(X + (t * width * 8)[:, None] + c[None, :], mask=ok, other=0.0)


@triton.jit
def _few(
    X, Out, Codes, Scale, Zero, Group, Mask, Starts, tokens, rows, width, groups,
    BITS: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Outputs of R rows of W for T tokens. See ``unpacking`` for the other arguments.

    It multiplies and adds in fp32, in registers. A group's scale multiplies the sums of its eights, not its weights.
    """
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    t = tl.arange(0, T)
    total = tl.zeros((T, R, E), tl.float32)
    for tile in range(0, tl.cdiv(width, E)):
        scale, steps = decoded(
            Codes, Scale, Zero, Group, Mask, Starts, r, r < rows, tile, width, groups, BITS, MASKED, SIZE, E
        )  # fmt: skip
        # A thread loads eight numbers side by side. The compiler then lets it decode the eight weights that they meet.
        x = tl.reshape(_columns(X, t, tokens, tile, width, E).to(tl.float32), (T, 1, E, 8))
        if SIZE < 0:  # ANY_GROUPS: a scale for each weight
            total += tl.sum((scale * steps)[None, :, :, :] * x, 3)
        else:
            total += tl.sum(steps[None, :, :, :] * x, 3) * tl.reshape(scale, (1, scale.shape[0], scale.shape[1]))
    at = t[:, None] * rows + r[None, :]
    tl.store(Out + at, tl.sum(total, 2).to(Out.dtype.element_ty), mask=(t < tokens)[:, None] & (r < rows)[None, :])


@triton.jit
def _more(
    X, Out, Codes, Scale, Zero, Group, Mask, Starts, tokens, rows, width, groups,
    BITS: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """As ``_few``, by tensor cores: for up to T = 16 tokens, which take the time of one."""
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    t = tl.arange(0, T)
    total = tl.zeros((T, R), tl.float32)
    for tile in range(0, tl.cdiv(width, E)):
        scale, steps = decoded(
            Codes, Scale, Zero, Group, Mask, Starts, r, r < rows, tile, width, groups, BITS, MASKED, SIZE, E
        )  # fmt: skip
        x = _columns(X, t, tokens, tile, width, E)
        w = (scale * steps).to(x.dtype)
        # This pair of steps changes nothing, except that a thread then decodes neighbours, not each eighth weight.
        even, odd = tl.split(tl.reshape(w, (R, E * 4, 2)))
        w = tl.reshape(tl.join(even, odd), (R, E * 8))
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    at = t[:, None] * rows + r[None, :]
    tl.store(Out + at, total.to(Out.dtype.element_ty), mask=(t < tokens)[:, None] & (r < rows)[None, :])


def takes(tokens: int, matrix: Matrix) -> bool:
    """Whether :func:`product` takes so many tokens: it then is faster than a dense copy and the library's product."""
    return 0 < tokens <= (TOKENS_PRUNED if matrix.kind["MASKED"] else TOKENS)


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x (..., in), at most fp32 -> (..., out), for as many tokens as it :func:`takes`; sums in fp32."""
    rows, width, _ = matrix.sizes
    tokens = x.numel() // (width * 8)
    out = x.new_empty(*x.shape[:-1], rows)
    x = x.contiguous()
    parts, key = (x, out, *matrix.tensors, tokens, *matrix.sizes), (tokens, x.dtype, x.data_ptr() % 16)
    if tokens <= FEW:
        launch(matrix, key, _few, -(-rows // FEW_TILE["R"]), parts, FEW_TILE | {"T": tokens if tokens < 3 else 4})
    else:
        launch(matrix, key, _more, -(-rows // MORE_TILE["R"]), parts, MORE_TILE)
    return out
