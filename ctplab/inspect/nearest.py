"""Which vocabulary tokens are nearest to learned rows? Exact search with FAISS (torch where it is missing)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab.models import Model, Tokenizer, embeddings
from ctplab.prompts.prefix import Prefix


def search(table: Tensor, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and ids of the ``top`` rows of ``table`` (V, d) nearest to ``queries`` (k, d): (k, top)."""
    table, queries = F.normalize(table.float().cpu()), F.normalize(queries.float().cpu())
    top = min(top, len(table))
    try:
        import faiss
    except ImportError:
        return torch.topk(queries @ table.T, top)
    index: Any = faiss.IndexFlatIP(table.shape[1])
    index.add(table.numpy())
    similarity, ids = index.search(queries.numpy(), top)
    return torch.from_numpy(similarity), torch.from_numpy(ids)


@dataclass(frozen=True)
class RowReport:
    """One prompt token seen from the vocabulary."""

    row: int
    nearest: list[tuple[str, float]]
    """(token, cosine), nearest first."""
    norm: float
    init: str | None
    """The token it started from."""
    init_rank: int | None
    """That token's rank among the nearest now; 0 = still the nearest."""
    drift: float
    """||E - E_init|| / ||E_init||."""


def inspect_prompt(
    model: Model, tokenizer: Tokenizer, prefix: Prefix, initial: Prefix, *, top: int = 5
) -> list[RowReport]:
    """Nearest tokens, norm, init and drift of every row."""
    table = embeddings(model).detach()
    similarity, ids = search(table, prefix.rows, top)
    full_order = torch.argsort(
        F.normalize(prefix.rows) @ F.normalize(table.float().cpu()).T, dim=1, descending=True, stable=True
    )
    reports = []
    for row in range(prefix.k):
        start = initial.ids[row] if initial.ids else None
        nearest = [
            (tokenizer.decode([int(i)]), round(float(s), 4)) for i, s in zip(ids[row], similarity[row], strict=True)
        ]
        rank = None if start is None else int((full_order[row] == start).nonzero()[0, 0])
        moved = float((prefix.rows[row] - initial.rows[row]).norm() / initial.rows[row].norm().clamp(min=1e-12))
        reports.append(
            RowReport(
                row,
                nearest,
                round(float(prefix.rows[row].norm()), 4),
                None if start is None else tokenizer.decode([start]),
                rank,
                round(moved, 4),
            )
        )
    return reports


def cosine_histogram(model: Model, prefix: Prefix, initial: Prefix, *, top: int = 100, bins: int = 40) -> dict:
    """Cosines of each row to its ``top`` nearest tokens (Figure 8), beside their nulls.

    ``real``: real tokens (themselves left out); ``init``: the untrained rows; ``random``: Gaussian rows of the
    learned rows' norms. Returns {"edges": [...], "counts": {name: [...]}, "mean": {name: x}}.
    """
    table = embeddings(model).detach().float().cpu()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(prefix.rows.shape, generator=generator)
    real = table[torch.randperm(len(table), generator=generator)[: prefix.k]]
    sets = {
        "soft": search(table, prefix.rows, top)[0],
        "init": search(table, initial.rows, top + 1)[0][:, 1:],
        "real": search(table, real, top + 1)[0][:, 1:],
        "random": search(table, noise, top)[0],
    }
    edges = torch.linspace(-1, 1, bins + 1)
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "counts": {name: torch.histc(values, bins, -1, 1).int().tolist() for name, values in sets.items()},
        "mean": {name: round(float(values.mean()), 4) for name, values in sets.items()},
    }
