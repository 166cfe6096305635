"""The loops of :mod:`ctplab.compression.obs` over blocks, pieces of blocks, and single columns. Pure tensors.

    for each block of 128 columns
        choose the zeros of the block                            (SparseGPT, joint)
        for each piece of the block
            fit a grid if a group of columns begins here
            for each column: round or zero it, err, rest of the piece -= err ⊗ U
            rest of the block -= the piece's errs · U
        all later columns -= the block's errs · U

A piece has 16 columns on a CPU, so that they stay in a core's cache. On a card with Triton it has up to 128, and one
kernel fixes them all (``kernels/columns``). A plain loop would write to all of W for each of thousands of columns.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ctplab.compression import grid as grids
from ctplab.compression.grid import Grid
from ctplab.compression.kernels.usable import usable
from ctplab.compression.tables import Tables, Work
from ctplab.specs import CompressionSpec

ON_CPU, ON_CARD = 16, 128  # columns a piece


def fit(w: Tensor, spec: CompressionSpec) -> Grid:
    """The grid of each row of ``w`` (rows, n)."""
    assert spec.bits
    return grids.fit(w, spec.bits, symmetric=spec.symmetric, mse=spec.mse, reference=spec.reference)


def static_tables(W: Tensor, spec: CompressionSpec, where: Tensor) -> Tables:
    """One grid for each group of adjacent columns of ``W`` (out, in). ``where``: the place in W of every column."""
    assert spec.group_size
    size, rows = spec.group_size, len(W)
    whole = W.shape[1] // size * size
    found = [fit(W[:, :whole].reshape(-1, size), spec)] if whole else []
    found = [Grid(g.scale.view(rows, -1), g.zero.view(rows, -1), g.maxq) for g in found]
    found += [fit(W[:, whole:], spec)] if whole < W.shape[1] else []
    return Tables.of(*found, source=(where // size).to(torch.int32))


def _block_size(spec: CompressionSpec) -> int:
    """Adjust the block to the group size and to a multiple of m, so that it cuts neither a grid nor a pattern."""
    block = spec.block
    if spec.group_size and not spec.reference and block % spec.group_size and spec.group_size % block:
        block = spec.group_size
    m = spec.n_m[1] or 1
    return -(-block // m) * m


def _cuts(start: int, end: int, most: int, m: int, size: int | None) -> list[int]:
    """The columns at which pieces begin, and the end: every ``most`` columns (whole patterns), and at every group."""
    inner = max(m, most - most % m)
    wanted = {c for c in range(start, end) if (c - start) % inner == 0}
    if size:
        wanted |= {c for c in range(start, end) if c % size == 0}
    return [*sorted(wanted), end]


def _saliency(work: Work, first: int, last: int) -> Tensor:
    """w² / U_ii² of some columns, (columns, rows): the cost of setting each weight to zero."""
    return work.Wt[first:last] ** 2 / work.U.diagonal()[first:last, None] ** 2


def _unstructured_mask(saliency: Tensor, sparsity: float, sections: tuple[int, ...]) -> Tensor:
    """Mask (columns, rows) of the int(n · s) + 1 lowest saliencies per stacked layer: the reference's threshold."""
    masks = []
    for part in torch.split(saliency, list(sections), 1):
        flat = part.flatten()
        index = min(int(len(flat) * sparsity), len(flat) - 1)
        # a card selects with one of its processors, but sorts with all
        threshold = flat.sort().values[index] if flat.is_cuda else torch.kthvalue(flat, index + 1).values
        masks.append(part <= threshold)
    return torch.cat(masks, 1)


def _group_columns(Wt: Tensor, stale: Tensor | None, start: int, first: int, end: int, size: int) -> Tensor:
    """The columns to fit a group's grid to: as they are now, or if ``stale`` is given, as the block began."""
    if stale is None:
        return Wt[first : first + size]
    past = stale[first - start : first - start + size]
    return torch.cat([past, Wt[end : first + size]]) if len(past) < size else past


def fix_all(work: Work, tables: Tables | None, spec: CompressionSpec, sections: tuple[int, ...]) -> list[Tables]:
    """Fix all columns, in place, and return the grids in the order of their groups.

    ``tables``: the grids, if they are known; None: none, or they are fitted on the way.
    """
    Wt, U, mask, size = work.Wt, work.U, work.mask, spec.group_size
    found = [] if tables is None else [tables]
    fresh = size if tables is None else None  # size of the groups whose grids are fitted on the way
    on_card = usable(Wt.device)
    most, block, m = ON_CARD if on_card else ON_CPU, _block_size(spec), spec.n_m[1] or 1
    # The kernel fits grids itself if no group spans two pieces.
    kernel_fits = bool(on_card and fresh and not spec.reference and block % fresh == most % fresh == 0)
    for start in range(0, len(Wt), block):
        end = min(start + block, len(Wt))
        Err = torch.empty_like(Wt[start:end])
        stale = Wt[start:end].clone() if spec.reference and size else None
        if mask is not None and not spec.pattern:
            mask[start:end] = _unstructured_mask(_saliency(work, start, end), spec.sparsity, sections)
        for first, last in pairwise(_cuts(start, end, most, m, None if kernel_fits else fresh)):
            done = Err[first - start : last - start]
            if fresh and not kernel_fits and first % fresh == 0:
                tables = Tables.of(fit(_group_columns(Wt, stale, start, first, end, fresh).T, spec))
                found.append(tables)
            if on_card:
                from ctplab.compression.kernels.columns import fix

                if kernel_fits and fresh:
                    tables = Tables(*Wt.new_empty(2, -(-len(done) // fresh), Wt.shape[1]).unbind())
                    found.append(tables)
                fix(work, first, done, tables, spec, fits=fresh if kernel_fits else None)
            else:
                _fix(work, first, done, tables, spec)
            Wt[last:end].addmm_(U[first:last, last:end].T, done, alpha=-1)
        Wt[end:].addmm_(U[start:end, end:].T, Err, alpha=-1)
    return found


def _fix(work: Work, first: int, Err: Tensor, tables: Tables | None, spec: CompressionSpec) -> None:
    """Fix ``len(Err)`` columns one by one. Spread each error over the later ones and store it in ``Err``."""
    Wt, U, codes, mask = work.Wt, work.U, work.codes, work.mask
    last, (n, m) = first + len(Err), spec.n_m
    diagonal = U.diagonal()[first:last].unbind()
    own = None if tables is None or tables.source is None else tables.source[first:last].tolist()
    out = torch.empty_like(Wt[first])
    for i, c in enumerate(range(first, last)):
        if mask is not None and m and c % m == 0:
            score = _saliency(work, c, c + m)
            lowest = torch.topk(score, min(n, len(score)), dim=0, largest=False).indices
            mask[c : c + m].scatter_(0, lowest, True)
        w = Wt[c]
        q = w if mask is None else w.masked_fill(mask[c], 0)
        if tables is not None and codes is not None:  # the same as Grid's encode and decode, without temporaries
            scale, zero = (table[own[i] if own else 0] for table in (tables.scale, tables.zero))
            torch.div(q, scale, out=out).round_().add_(zero).clamp_(0, 2 ** (spec.bits or 1) - 1)
            codes[c].copy_(out)
            q = out.sub_(zero).mul_(scale)
        elif mask is not None and not spec.reference:
            q = q.half().to(w.dtype)  # kept weights are stored in half precision
        err = Err[i]
        torch.sub(w, q, out=err).div_(diagonal[i])
        Wt[c + 1 : last].addr_(U[c, c + 1 : last], err, alpha=-1)
        w.copy_(q)
