"""Learned rows among the vocabulary's: cosines against their nulls (Figure 8), and a map in two dimensions."""

from typing import Any

import torch
from torch import Tensor

from ctplab.inspect.nearest import search, vocabulary
from ctplab.models import Model
from ctplab.prompts.prefix import Prefix

PAPER_LARGEST = 0.16
"""Nearly all cosines to the 100 nearest tokens in Figure 8 are smaller (appendix D, a prompt at 50% sparsity)."""


def _but_own(table: Tensor, rows: Tensor, own: Tensor, top: int, metric: str, centre: bool) -> Tensor:
    """Nearness (k, top) of ``rows``, which are rows ``own`` (k,) of ``table``, to the nearest other rows."""
    values, ids = search(table, rows, top + 1, metric, centre)
    other = ids != own[:, None]
    other[other.all(1), -1] = False  # if a row did not find itself, drop its last value
    return values[other].view(len(rows), -1)


def nearness(
    table: Tensor,
    prefix: Prefix,
    initial: Prefix,
    *,
    top: int = 100,
    metric: str = "cosine",
    centre: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Nearness of the learned rows (``soft``) and of three nulls to their ``top`` nearest rows of ``table`` (V, d).

    Each is (k, top). The nulls are ``real`` (real tokens) and ``init`` (the untrained rows), both without themselves,
    and ``random`` (Gaussian rows with the learned rows' norms). Metrics and centring: as in
    :func:`ctplab.inspect.nearest.search`.
    """
    generator = torch.Generator().manual_seed(seed)
    middle = table.mean(0) if centre else torch.zeros(table.shape[1])
    noise = torch.randn(prefix.rows.shape, generator=generator)
    noise *= ((prefix.rows - middle).norm(dim=1) / noise.norm(dim=1))[:, None]
    real = torch.randperm(len(table), generator=generator)[: prefix.k]
    start = search(table, initial.rows, top, metric, centre)[0]
    if initial.ids:
        start = _but_own(table, initial.rows, torch.tensor(initial.ids), top, metric, centre)
    return {
        "soft": search(table, prefix.rows, top, metric, centre)[0],
        "init": start,
        "real": _but_own(table, table[real], real, top, metric, centre),
        "random": search(table, middle + noise, top, metric, centre)[0],
    }


def binned(sets: dict[str, Tensor], low: float, high: float, bins: int) -> dict[str, Any]:
    """Histogram of the values of each set: {"edges": [...], "counts": {name: [...]}, "mean": {name: x}}."""
    edges = torch.linspace(low, high, bins + 1)
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "counts": {
            name: torch.histc(values.clamp(low, high), bins, low, high).int().tolist() for name, values in sets.items()
        },
        "mean": {name: round(float(values.mean()), 4) for name, values in sets.items()},
    }


def cosine_histogram(
    model: Model, prefix: Prefix, initial: Prefix, *, top: int = 100, bins: int = 40, seed: int = 0
) -> dict[str, Any]:
    """Cosines of each row to its ``top`` nearest tokens (Figure 8), with the nulls of :func:`nearness`.

    Returns {"edges": [...], "counts": {name: [...]}, "mean": {name: x}, "rows": {"low": [...], "mean": [...],
    "high": [...]}}; ``rows``: of each learned row's own cosines.
    """
    sets = nearness(vocabulary(model), prefix, initial, top=top, seed=seed)
    own = {"low": sets["soft"].amin(1), "mean": sets["soft"].mean(1), "high": sets["soft"].amax(1)}  # (k,) each
    rows = {name: [round(value, 4) for value in values.tolist()] for name, values in own.items()}
    return {**binned(sets, -1, 1, bins), "rows": rows}


def pca(rows: Tensor, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Principal axes of ``rows`` (N, d): their mean (d,), axes (n, d), and the shares of variance (n,) they explain.

    Signs are fixed (the largest loading of each axis is positive), so the same rows give the same picture.
    """
    middle = rows.double().mean(0)
    centred = rows.double() - middle
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # (d,) rising, columns of (d, d)
    axes = axes.T.flip(0)[:n]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return middle, axes, variances.flip(0)[:n] / variances.sum().clamp(min=1e-30)


def project(
    model: Model,
    prefix: Prefix,
    initial: Prefix,
    extra_ids: tuple[int, ...] = (),
    *,
    sample: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Map ``sample`` vocabulary rows, ``extra_ids``, the untrained and the learned rows onto two principal axes.

    The axes are the vocabulary's own, all of its rows: a prompt is seen on them, and does not turn them.

    Returns {"explained": [x, y], "vocabulary": points, "extra": points, "init": points, "learned": points}; points
    are {"ids": [...] or None, "x": [...], "y": [...]}, rows of ``init`` and ``learned`` in the prompt's order.
    """
    table = vocabulary(model)
    chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:sample].sort().values
    extra = torch.tensor(extra_ids, dtype=torch.long)
    groups = {"vocabulary": table[chosen], "extra": table[extra], "init": initial.rows, "learned": prefix.rows}
    ids = {"vocabulary": chosen.tolist(), "extra": list(extra_ids), "init": list(initial.ids or ()), "learned": None}
    middle, axes, explained = pca(table.float().cpu())
    where = (torch.cat([rows.float().cpu() for rows in groups.values()]).double() - middle) @ axes.T
    points, at = {}, 0
    for name, rows in groups.items():
        x, y = where[at : at + len(rows)].T.tolist()
        points[name] = {"ids": ids[name] or None, "x": x, "y": y}
        at += len(rows)
    return {"explained": explained.tolist(), **points}
