"""One column solver for GPTQ (arXiv 2210.17323), SparseGPT (arXiv 2301.00774) and both jointly.

Objective, for one linear with weights W (out, in) and inputs X (in, n): find Ŵ on a grid, or with zeros, or both,
that minimises ||(W - Ŵ) X||² = N/2 · tr((W - Ŵ) H (W - Ŵ)ᵀ) with H = 2 X Xᵀ / N. Columns are fixed one after the
other. The optimal-brain-surgeon update spreads the error of column i over the columns that are not yet fixed:

    err = (w_i - ŵ_i) / U_ii ;   W[:, i:] -= err ⊗ U[i, i:]        U: upper Cholesky factor of H⁻¹

SparseGPT chooses the zeros of each block by the saliency w² / U_ii². Pure tensors: no modules, devices, prints.

An example to follow with a pencil: one row w = (0.6, 0.6), a grid of whole numbers, and two correlated inputs with
H = [[2, 1], [1, 2]]. Then H⁻¹ = [[2, -1], [-1, 2]] / 3, so U = [[0.816, -0.408], [0, 0.707]].

    column 1    ŵ = 1        err = (0.6 - 1) / 0.816 = -0.49
                w_2 becomes 0.6 - (-0.49)(-0.408) = 0.4, because column 1 was rounded up
    column 2    ŵ = 0

The error (w - ŵ) H (w - ŵ)ᵀ of (1, 0) is 0.56. Rounding each weight on its own gives (1, 1) with an error of 0.96.

A plain loop over thousands of columns would write to all of W for each of them. ``compression/columns`` spreads errors
on three levels: at once over a piece of some columns, then over the block, then over all later columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.compression.columns import fit, fix_all, static_tables
from ctplab.compression.factor import factor
from ctplab.compression.tables import Tables, Work
from ctplab.specs import CompressionSpec


@dataclass(frozen=True)
class Solution:
    """A compressed matrix."""

    W_hat: Tensor  # (out, in) fp32
    codes: Tensor | None  # (out, in) uint8; None if not quantised
    scale: Tensor | None  # (out, groups)
    zero: Tensor | None  # (out, groups)
    group: Tensor | None  # (in,) group of every column; None: one grid per row
    mask: Tensor | None  # (out, in) True where pruned
    fallback: str | None = None  # what was done if the Hessian was not positive definite

    def split(self, sections: tuple[int, ...]) -> list["Solution"]:
        """The solutions of the layers whose rows were stacked, ``sections`` rows each."""

        def cut(tensor: Tensor | None) -> list[Tensor] | list[None]:
            return [None] * len(sections) if tensor is None else list(torch.split(tensor, list(sections)))

        columns = [cut(x) for x in (self.W_hat, self.codes, self.scale, self.zero, self.mask)]
        return [
            Solution(W_hat, codes, scale, zero, self.group, mask, self.fallback)
            for W_hat, codes, scale, zero, mask in zip(*columns, strict=True)
            if W_hat is not None
        ]


PANEL = 256  # columns of H per step of the output loss


def output_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """||(W - Ŵ) X||² / N: the squared output error per token, summed over outputs."""
    difference, H = W.float() - W_hat, H.float()
    total = torch.zeros((), device=H.device)
    for start in range(0, len(H), PANEL):  # H is symmetric: what is off its diagonal blocks counts twice
        own, behind = slice(start, start + PANEL), slice(start + PANEL, None)
        product = 2 * (difference[:, behind] @ H[behind, own])
        total += (product.addmm_(difference[:, own], H[own, own]) * difference[:, own]).sum()
    return float(total) / 2


def solve(W: Tensor, H: Tensor, spec: CompressionSpec, sections: tuple[int, ...] | None = None) -> Solution:
    """Compress ``W`` (out, in) against the Hessian ``H`` (in, in).

    ``sections``: rows of each layer if ``W`` stacks several layers that share an input (q, k, v). Rows are
    independent, so one solve serves all layers. Only the pruning threshold is computed per layer.
    """
    W, H = W.float().clone(), H.float().clone()
    rows, columns = W.shape
    sections = sections or (rows,)
    dead = H.diagonal() == 0  # inputs that are always zero
    tables = Tables.of(fit(W, spec)) if spec.bits and not spec.group_size else None
    H[dead, dead] = 1
    W[:, dead] = 0
    order = torch.argsort(H.diagonal(), descending=True, stable=True) if spec.act_order else None
    where = torch.arange(columns, device=W.device) if order is None else order
    if spec.static_groups:
        tables = static_tables(W, spec, where)
    if order is not None:
        W, H = W[:, order], H[order][:, order]
    U, fallback = factor(H, spec.damp)
    if U is None:  # round to nearest, prune by magnitude: as if inputs were uncorrelated and of equal size
        U = torch.eye(columns, dtype=W.dtype, device=W.device)

    codes = torch.zeros(columns, rows, dtype=torch.uint8, device=W.device) if spec.bits else None
    mask = torch.zeros(columns, rows, dtype=torch.bool, device=W.device) if spec.sparsity else None
    Wt = W.T.contiguous()
    found = fix_all(Work(Wt, U, codes, mask), tables, spec, sections)
    scale = torch.cat([t.scale for t in found]).T.contiguous() if found else None
    zero = torch.cat([t.zero for t in found]).T.contiguous() if found else None

    group = None
    if spec.group_size:
        place = where if spec.static_groups else torch.arange(columns, device=W.device)
        group = place // spec.group_size
    if order is not None:
        back = torch.argsort(order)
        Wt, codes, mask, group = (None if x is None else x[back] for x in (Wt, codes, mask, group))
    assert Wt is not None
    return Solution(
        Wt.T.contiguous(),
        None if codes is None else codes.T.contiguous(),
        scale,
        zero,
        group,
        None if mask is None else mask.T.contiguous(),
        fallback,
    )
