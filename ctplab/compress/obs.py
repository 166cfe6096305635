"""One column solver for GPTQ (arXiv 2210.17323), SparseGPT (arXiv 2301.00774) and both jointly.

Objective, for one linear with weights W (out, in) and inputs X (in, n): find Ŵ on a grid, or with zeros, or both,
that minimises ||(W - Ŵ) X||² = N/2 · tr((W - Ŵ) H (W - Ŵ)ᵀ) with H = 2 X Xᵀ / N. Columns are fixed one after the
other; what fixing column i costs is spread over the columns not yet fixed by the optimal-brain-surgeon update

    err = (w_i - ŵ_i) / U_ii ;   W[:, i:] -= err ⊗ U[i, i:]        U: upper Cholesky factor of H⁻¹

SparseGPT chooses its zeros block by block by the saliency w² / U_ii². Pure tensors: no modules, devices, prints.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.compress.grid import Grid, fit
from ctplab.specs import CompressionSpec

DAMP_LADDER = (1, 10, 100)  # times spec.damp, until H is positive definite


@dataclass(frozen=True)
class Solution:
    """A compressed matrix."""

    W_hat: Tensor  # (out, in) fp32
    codes: Tensor | None  # (out, in) uint8; None if not quantised
    scale: Tensor | None  # (out, groups)
    zero: Tensor | None  # (out, groups)
    group: Tensor | None  # (in,) group of every column; None: one grid a row
    mask: Tensor | None  # (out, in) True where pruned
    loss: float  # ||(W - Ŵ) X||² / N: squared output error a token, summed over outputs
    fallback: str | None = None  # how the Hessian had to be helped, if it had


def cholesky_of_inverse(H: Tensor) -> Tensor | None:
    """U, upper, with H⁻¹ = Uᵀ U; None where H is not positive definite. (in, in)

    Reversing rows and columns turns a lower factor of H into an upper one, H = R Rᵀ; then U = R⁻¹. One
    factorisation and one triangular solve, no explicit inverse.
    """
    lower, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0 or not torch.isfinite(lower).all():
        return None
    eye = torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)


def factor(H: Tensor, damp: float) -> tuple[Tensor | None, str | None]:
    """U for ``H`` dampened by ``damp`` · mean(diag H), climbing a ladder; (None, why) where nothing helps."""
    for times in DAMP_LADDER:
        damped = H.clone()
        damped.diagonal().add_(max(times * damp * float(H.diagonal().mean()), 1e-12))
        U = cholesky_of_inverse(damped)
        if U is not None:
            return U, None if times == 1 else f"damp {times * damp:g}"
    return None, "round-to-nearest: Hessian not positive definite"


def _block_size(spec: CompressionSpec) -> int:
    """A multiple of the group size (or its divisor), so that no grid is fitted on stale columns."""
    g = spec.group_size
    if g is None or spec.block % g == 0 or g % spec.block == 0:
        return spec.block
    return g


def _unstructured_mask(W1: Tensor, d: Tensor, sparsity: float, sections: tuple[int, ...]) -> Tensor:
    """The reference's threshold, for each stacked layer by itself: int(n · s) + 1 lowest saliencies."""
    masks = []
    for part in torch.split(W1**2 / d**2, list(sections)):
        flat = part.flatten()
        index = min(int(flat.numel() * sparsity), flat.numel() - 1)
        masks.append(part <= torch.sort(flat).values[index])
    return torch.cat(masks)


def solve(W: Tensor, H: Tensor, spec: CompressionSpec, sections: tuple[int, ...] | None = None) -> Solution:
    """Compress ``W`` (out, in) against the Hessian ``H`` (in, in).

    ``sections``: rows of each layer where several that share an input are stacked (q, k, v): rows are independent,
    so one solve serves all; only the pruning threshold is taken a layer.
    """
    W0, W = W.float(), W.float().clone()
    H = H.float().clone()
    rows, columns = W.shape
    sections = sections or (rows,)
    grid: Grid | None = None
    if spec.bits and spec.group_size is None:
        grid = fit(W, spec.bits, spec.symmetric)

    dead = H.diagonal() == 0  # inputs that are always zero
    H_loss = H.clone()
    H[dead, dead] = 1
    W[:, dead] = 0
    order = torch.argsort(H.diagonal(), descending=True, stable=True) if spec.act_order else None
    if order is not None:
        W, H = W[:, order], H[order][:, order]
    U, fallback = factor(H, spec.damp)
    if U is None:  # round to nearest, prune by magnitude: as if all inputs were alike
        U = torch.eye(columns, dtype=W.dtype, device=W.device)

    codes = torch.zeros_like(W, dtype=torch.uint8) if spec.bits else None
    mask = torch.zeros_like(W, dtype=torch.bool) if spec.sparsity else None
    scales, zeros = [], []
    n, m = spec.n_m
    block = _block_size(spec)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        W1, U1 = W[:, start:end].clone(), U[start:end, start:end]
        Err = torch.zeros_like(W1)
        d = U1.diagonal()
        if mask is not None and not m:
            mask[:, start:end] = _unstructured_mask(W1, d, spec.sparsity, sections)
        for i in range(end - start):
            c = start + i
            if spec.bits and spec.group_size and c % spec.group_size == 0:
                tail = W[:, end : c + spec.group_size]
                grid = fit(torch.cat([W1[:, i : i + spec.group_size], tail], 1), spec.bits, spec.symmetric)
                scales.append(grid.scale)
                zeros.append(grid.zero)
            if mask is not None and m and i % m == 0:
                score = W1[:, i : i + m] ** 2 / d[i : i + m] ** 2
                lowest = torch.topk(score, min(n, score.shape[1]), dim=1, largest=False).indices
                mask[:, c : c + m].scatter_(1, lowest, True)
            w = W1[:, i]
            q = w if mask is None else w.masked_fill(mask[:, c], 0)
            if grid is not None and codes is not None:
                code = grid.encode(q[:, None])
                codes[:, c] = code[:, 0].to(torch.uint8)
                q = grid.decode(code)[:, 0]
            elif mask is not None:
                q = q.half().to(w.dtype)  # kept weights live on disk in half precision
            err = (w - q) / d[i]
            W1[:, i:] -= err[:, None] * U1[i, i:]
            W1[:, i] = q
            Err[:, i] = err
        W[:, start:end] = W1
        W[:, end:] -= Err @ U[start:end, end:]

    if not scales and grid is not None:
        scales, zeros = [grid.scale], [grid.zero]
    group = None
    if spec.group_size:
        group = torch.arange(columns, device=W.device) // spec.group_size
    if order is not None:
        back = torch.argsort(order)
        W = W[:, back]
        codes = codes[:, back] if codes is not None else None
        mask = mask[:, back] if mask is not None else None
        group = group[back] if group is not None else None
    difference = W0 - W
    loss = float(((difference @ H_loss) * difference).sum()) / 2
    scale = torch.cat(scales, 1) if scales else None
    zero = torch.cat(zeros, 1) if zeros else None
    return Solution(W, codes, scale, zero, group, mask, loss, fallback)
