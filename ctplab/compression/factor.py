"""U, the upper Cholesky factor of the inverse Hessian, H⁻¹ = Uᵀ U. The column solver spreads errors with it.

Pure tensors: no modules, devices, prints.
"""

import torch
from torch import Tensor

DAMP_LADDER = (1, 10, 100)  # multiples of the requested dampening, tried until H is positive definite
LEAF = 640  # up to this many columns, a triangular solve is the fastest inverse


def cholesky_of_inverse(H: Tensor) -> Tensor | None:
    """Return upper triangular U (in, in) with H⁻¹ = Uᵀ U, or None if H is not positive definite.

    Reverse the rows and columns of H, factor the result, and reverse the lower factor: this gives an upper R with
    H = R Rᵀ. Then U = R⁻¹. H⁻¹ itself is never formed.
    """
    lower, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0 or not torch.isfinite(lower).all():
        return None
    return inverse_upper(lower.flip(0, 1))


def inverse_upper(R: Tensor) -> Tensor:
    """The inverse of an upper triangular R (n, n).

    A large R is inverted by halves: [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]. A triangular solve against the
    identity does not know that half of its answer is zero, and it runs slower than matrix products.
    """
    n = len(R)
    if n <= LEAF:
        return torch.linalg.solve_triangular(R, torch.eye(n, dtype=R.dtype, device=R.device), upper=True).contiguous()
    half = n // 2
    inverse = R.new_zeros(n, n)
    inverse[:half, :half], inverse[half:, half:] = inverse_upper(R[:half, :half]), inverse_upper(R[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ (R[:half, half:] @ inverse[half:, half:])
    return inverse


def factor(H: Tensor, damp: float) -> tuple[Tensor | None, str | None]:
    """Return U for ``H`` + ``damp`` · mean(diag H) · I, and a note, which is None if all went well.

    If H is not positive definite, stronger dampenings are tried, and the note names the one that worked. Returns
    (None, why) if none did.
    """
    for times in DAMP_LADDER:
        damped = H.clone()
        damped.diagonal().add_(max(times * damp * float(H.diagonal().mean()), 1e-12))
        U = cholesky_of_inverse(damped)
        if U is not None:
            return U, None if times == 1 else f"damp {times * damp:g}"
    return None, "round-to-nearest: Hessian not positive definite"
