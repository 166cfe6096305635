"""U, the upper Cholesky factor of the inverse Hessian, H⁻¹ = Uᵀ U: what the column solver spreads errors with.

Pure tensors: no modules, devices, prints.
"""

import torch
from torch import Tensor

DAMP_LADDER = (1, 10, 100)  # times the asked dampening, until H is positive definite
LEAF = 640  # columns up to which a triangular solve is the fastest inverse


def cholesky_of_inverse(H: Tensor) -> Tensor | None:
    """U, upper, with H⁻¹ = Uᵀ U; None where H is not positive definite. (in, in)

    Reversing rows and columns turns a lower factor of H into an upper one, H = R Rᵀ; then U = R⁻¹. One
    factorisation and one triangular inverse; H⁻¹ itself is never formed.
    """
    lower, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0 or not torch.isfinite(lower).all():
        return None
    return inverse_upper(lower.flip(0, 1))


def inverse_upper(R: Tensor) -> Tensor:
    """R⁻¹ of an upper triangular R (n, n).

    Large ones by halves, [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]: a triangular solve against the identity
    would not know that half of its answer is zero, and matrix products run faster than it does.
    """
    n = len(R)
    if n <= LEAF:
        return torch.linalg.solve_triangular(R, torch.eye(n, dtype=R.dtype, device=R.device), upper=True)
    half = n // 2
    inverse = R.new_zeros(n, n)
    inverse[:half, :half], inverse[half:, half:] = inverse_upper(R[:half, :half]), inverse_upper(R[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ (R[:half, half:] @ inverse[half:, half:])
    return inverse


def factor(H: Tensor, damp: float) -> tuple[Tensor | None, str | None]:
    """U for ``H`` dampened by ``damp`` · mean(diag H), climbing a ladder; (None, why) where nothing helps."""
    for times in DAMP_LADDER:
        damped = H.clone()
        damped.diagonal().add_(max(times * damp * float(H.diagonal().mean()), 1e-12))
        U = cholesky_of_inverse(damped)
        if U is not None:
            return U, None if times == 1 else f"damp {times * damp:g}"
    return None, "round-to-nearest: Hessian not positive definite"
