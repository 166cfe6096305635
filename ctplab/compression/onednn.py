"""Float32 products by oneDNN, for processors on which it is faster than the BLAS that torch calls. Pure tensors.

torch multiplies float32 matrices with Intel's MKL, which gives processors of other makers narrower instructions than
they have. oneDNN is in torch as well and uses what the processor has: on an AMD EPYC with AVX-512 it takes less than
half the time. Both compute in float32 and differ in the order of their sums. torch has no switch between them; the
operator here is the one that ``torch.compile`` calls.
"""

import torch
from torch import Tensor


def available() -> bool:
    """Whether this build of torch has oneDNN and its operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b on a CPU, for ``x`` (..., in), ``weight`` (out, in) and ``bias`` (out,). Knows no gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
