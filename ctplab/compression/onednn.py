"""Float32 products by oneDNN, for processors on which it is faster than the BLAS that torch calls. Pure tensors.

torch multiplies float32 matrices with Intel's MKL, which gives processors of other makers narrower instructions than
they have. oneDNN is in torch as well and uses what the processor has: on an AMD EPYC with AVX-512 it takes less than
half the time. Both compute in float32 and differ in the order of their sums. torch has no switch between them; the
operator here is the one that ``torch.compile`` calls.
"""

from typing import Any

import torch
from torch import Tensor


def available() -> bool:
    """Whether this build of torch has oneDNN and its operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b on a CPU, for ``x`` (..., in), ``weight`` (out, in) and ``bias`` (out,). Knows no gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def learned_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with gradients for whatever wants one. Nothing is kept for those that do not."""
    y = _Linear.apply(x, weight, bias)
    assert isinstance(y, Tensor)
    return y


class _Linear(torch.autograd.Function):
    """:func:`linear`, whose gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = grads[0].flatten(0, -2)  # (n, out)
        down = None if weight is None else linear(grads[0], weight.T)
        own = None if x is None else linear(flat.T, x.flatten(0, -2).T)
        return down, own, flat.sum(0) if ctx.needs_input_grad[2] else None
