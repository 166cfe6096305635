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

A plain loop over thousands of columns would write to all of W for each of them. So :func:`solve` spreads errors on
three levels: at once over the 16 columns of the mini-block, then over the block, then over all later columns.

    for each block of 128 columns
        choose the zeros of the block                            (SparseGPT, joint)
        for each mini-block of 16 columns
            fit a grid if a group of columns begins here
            for each column: round or zero it, err, rest of the mini-block -= err ⊗ U
            rest of the block -= the mini-block's errs · U
        all later columns -= the block's errs · U
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ctplab.compression import grid as grids
from ctplab.compression.factor import factor
from ctplab.compression.grid import Grid
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
MINI = 16  # columns per mini-block, the inner level of lazy updates: they stay in a core's cache


def output_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """||(W - Ŵ) X||² / N: the squared output error per token, summed over outputs."""
    difference, H = W.float() - W_hat, H.float()
    total = torch.zeros((), device=H.device)
    for start in range(0, len(H), PANEL):  # H is symmetric: what is off its diagonal blocks counts twice
        own, behind = slice(start, start + PANEL), slice(start + PANEL, None)
        product = 2 * (difference[:, behind] @ H[behind, own])
        total += (product.addmm_(difference[:, own], H[own, own]) * difference[:, own]).sum()
    return float(total) / 2


def _block_size(spec: CompressionSpec) -> int:
    """Adjust the block to the group size and to a multiple of m, so that it cuts neither a grid nor a pattern."""
    block = spec.block
    if spec.group_size and not spec.reference and block % spec.group_size and spec.group_size % block:
        block = spec.group_size
    m = spec.n_m[1] or 1
    return -(-block // m) * m


def _cuts(start: int, end: int, spec: CompressionSpec) -> list[int]:
    """The columns at which mini-blocks begin, and the end: every 16 columns (or every m), and at every group."""
    m = spec.n_m[1]
    inner = m if m and MINI % m else MINI
    wanted = {c for c in range(start, end) if (c - start) % inner == 0}
    if spec.group_size:
        wanted |= {c for c in range(start, end) if c % spec.group_size == 0}
    return [*sorted(wanted), end]


def _unstructured_mask(saliency: Tensor, sparsity: float, sections: tuple[int, ...]) -> Tensor:
    """Mask (columns, rows) of the int(n · s) + 1 lowest saliencies per stacked layer: the reference's threshold."""
    masks = []
    for part in torch.split(saliency, list(sections), 1):
        index = min(int(part.numel() * sparsity), part.numel() - 1)
        masks.append(part <= torch.kthvalue(part.flatten(), index + 1).values)
    return torch.cat(masks, 1)


def _static_grids(W: Tensor, spec: CompressionSpec) -> list[Grid]:
    """One grid per group of adjacent columns, fitted to the original weights."""
    assert spec.bits and spec.group_size
    return [_fit(part, spec) for part in W.split(spec.group_size, 1)]


def _fit(w: Tensor, spec: CompressionSpec) -> Grid:
    assert spec.bits
    return grids.fit(w, spec.bits, symmetric=spec.symmetric, mse=spec.mse, reference=spec.reference)


@dataclass(frozen=True)
class _Work:
    """The tensors that the column loop reads and writes, transposed: a column of W is a row here."""

    Wt: Tensor  # (in, out): fixed above the current column, updated below it
    U: Tensor  # (in, in)
    codes: Tensor | None  # (in, out)
    mask: Tensor | None  # (in, out)


def _saliency(work: _Work, first: int, last: int) -> Tensor:
    """w² / U_ii² of some columns, (columns, rows): the cost of setting each weight to zero."""
    return work.Wt[first:last] ** 2 / work.U.diagonal()[first:last, None] ** 2


def _group_columns(Wt: Tensor, stale: Tensor | None, start: int, first: int, end: int, size: int) -> Tensor:
    """The columns to fit a group's grid to: as they are now, or if ``stale`` is given, as the block began."""
    if stale is None:
        return Wt[first : first + size]
    past = stale[first - start : first - start + size]
    return torch.cat([past, Wt[end : first + size]]) if len(past) < size else past


def _fix_columns(
    work: _Work, first: int, last: int, use: list[Grid | None], Err: Tensor, spec: CompressionSpec
) -> None:
    """Fix columns ``first`` to ``last`` one by one. Spread each error over the later ones and store it in ``Err``."""
    Wt, U, codes, mask = work.Wt, work.U, work.codes, work.mask
    n, m = spec.n_m
    diagonal = U.diagonal()[first:last].unbind()
    snapped = torch.empty_like(Wt[first])
    for i, c in enumerate(range(first, last)):
        if mask is not None and m and c % m == 0:
            score = _saliency(work, c, c + m)
            lowest = torch.topk(score, min(n, len(score)), dim=0, largest=False).indices
            mask[c : c + m].scatter_(0, lowest, True)
        w, grid = Wt[c], use[i]
        q = w if mask is None else w.masked_fill(mask[c], 0)
        if grid is not None and codes is not None:
            grid.snap(q, codes[c], out=snapped)
            q = snapped
        elif mask is not None and not spec.reference:
            q = q.half().to(w.dtype)  # kept weights are stored in half precision
        err = Err[i]
        torch.sub(w, q, out=err).div_(diagonal[i])
        Wt[c + 1 : last].addr_(U[c, c + 1 : last], err, alpha=-1)
        w.copy_(q)


def solve(W: Tensor, H: Tensor, spec: CompressionSpec, sections: tuple[int, ...] | None = None) -> Solution:
    """Compress ``W`` (out, in) against the Hessian ``H`` (in, in).

    ``sections``: rows of each layer if ``W`` stacks several layers that share an input (q, k, v). Rows are
    independent, so one solve serves all layers. Only the pruning threshold is computed per layer.
    """
    W, H = W.float().clone(), H.float().clone()
    rows, columns = W.shape
    sections = sections or (rows,)
    dead = H.diagonal() == 0  # inputs that are always zero
    grid = _fit(W, spec) if spec.bits and not spec.group_size else None
    H[dead, dead] = 1
    W[:, dead] = 0
    static = _static_grids(W, spec) if spec.static_groups else None
    order = torch.argsort(H.diagonal(), descending=True, stable=True) if spec.act_order else None
    if order is not None:
        W, H = W[:, order], H[order][:, order]
    U, fallback = factor(H, spec.damp)
    if U is None:  # round to nearest, prune by magnitude: as if inputs were uncorrelated and of equal size
        U = torch.eye(columns, dtype=W.dtype, device=W.device)

    # Columns become rows, so that each column is contiguous in memory.
    work = _Work(
        W.T.contiguous(),
        U,
        codes=torch.zeros(columns, rows, dtype=torch.uint8, device=W.device) if spec.bits else None,
        mask=torch.zeros(columns, rows, dtype=torch.bool, device=W.device) if spec.sparsity else None,
    )
    Wt, codes, mask = work.Wt, work.codes, work.mask
    found: list[Grid] = static or ([grid] if grid else [])
    where = torch.arange(columns, device=W.device) if order is None else order
    source = (where // spec.group_size).tolist() if static and spec.group_size else None  # grid of every column
    block = _block_size(spec)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        Err = torch.empty_like(Wt[start:end])
        stale = Wt[start:end].clone() if spec.reference and spec.group_size else None
        if mask is not None and not spec.pattern:
            mask[start:end] = _unstructured_mask(_saliency(work, start, end), spec.sparsity, sections)
        for first, last in pairwise(_cuts(start, end, spec)):
            if spec.group_size and static is None and first % spec.group_size == 0:
                grid = _fit(_group_columns(Wt, stale, start, first, end, spec.group_size).T, spec)
                found.append(grid)
            use = [static[source[c]] for c in range(first, last)] if static and source else [grid] * (last - first)
            done = Err[first - start : last - start]
            _fix_columns(work, first, last, use, done, spec)
            Wt[last:end].addmm_(U[first:last, last:end].T, done, alpha=-1)
        Wt[end:].addmm_(U[start:end, end:].T, Err, alpha=-1)

    group = None
    if spec.group_size:
        place = where if static is not None else torch.arange(columns, device=W.device)
        group = place // spec.group_size
    if order is not None:
        back = torch.argsort(order)
        Wt, codes, mask, group = (None if x is None else x[back] for x in (Wt, codes, mask, group))
    assert Wt is not None
    return Solution(
        Wt.T.contiguous(),
        None if codes is None else codes.T.contiguous(),
        torch.cat([g.scale for g in found], 1) if found else None,
        torch.cat([g.zero for g in found], 1) if found else None,
        group,
        None if mask is None else mask.T.contiguous(),
        fallback,
    )
