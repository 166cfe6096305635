"""Find the vocabulary tokens nearest to learned rows: exact search with FAISS, or with torch if FAISS is missing.

There are three measures: ``cosine``, ``dot`` (inner product; larger is nearer) and ``l2`` (Euclidean distance; smaller
is nearer). Centring subtracts the mean of the searched rows from both sides, which removes the direction that all rows
share. Vocabulary rows are as the model itself embeds them (scaled if its embedding module scales).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts.prefix import Prefix, from_ids

METRICS = ("cosine", "dot", "l2")


def _prepare(table: Tensor, queries: Tensor, metric: str, centre: bool) -> tuple[Tensor, Tensor]:
    """Convert both sides to fp32 on the CPU, centre them if asked, and normalise them for cosines."""
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    table, queries = table.float().cpu(), queries.float().cpu()
    if centre:
        mean = table.mean(0)
        table, queries = table - mean, queries - mean
    if metric == "cosine":
        table, queries = F.normalize(table), F.normalize(queries)
    return table.contiguous(), queries.contiguous()


def search(
    table: Tensor, queries: Tensor, top: int, metric: str = "cosine", centre: bool = False
) -> tuple[Tensor, Tensor]:
    """Values and ids of the ``top`` rows of ``table`` (V, d) nearest to ``queries`` (k, d), nearest first: (k, top)."""
    table, queries = _prepare(table, queries, metric, centre)
    top = min(top, len(table))
    try:
        import faiss
    except ImportError:
        if metric == "l2":
            return torch.topk(torch.cdist(queries, table), top, largest=False)
        return torch.topk(queries @ table.T, top)
    index: Any = faiss.IndexFlatL2(table.shape[1]) if metric == "l2" else faiss.IndexFlatIP(table.shape[1])
    index.add(table.numpy())
    values, ids = (torch.from_numpy(found) for found in index.search(queries.numpy(), top))
    return values.clamp(min=0).sqrt() if metric == "l2" else values, ids  # FAISS gives squared distances


def ranks_of(table: Tensor, queries: Tensor, ids: Tensor, metric: str = "cosine", centre: bool = False) -> Tensor:
    """Number of rows of ``table`` that are nearer to query i than row ``ids[i]``: (k,); 0 = that row is the nearest."""
    table, queries = _prepare(table, queries, metric, centre)
    nearness = -torch.cdist(queries, table) if metric == "l2" else queries @ table.T  # (k, V)
    return (nearness > nearness.gather(1, ids[:, None])).sum(1)


def vocabulary(model: Model) -> Tensor:
    """All vocabulary rows as the model embeds them, (V, d) fp32 on the CPU."""
    return embed(model, torch.arange(len(embeddings(model)))).detach().float().cpu()


def searched_rows(
    rows: int,
    tokenizer: Tokenizer,
    *,
    drop_special: bool = False,
    drop_unused: bool = False,
    seen: Tensor | None = None,
) -> Tensor:
    """Ids of the rows to search, out of ``rows`` rows. Raises InputError if none is left.

    Unused rows belong to no token of the tokenizer (padding of the matrix). With ``seen`` (token ids of a text), rows
    that never occur in the text are unused too.
    """
    keep = torch.ones(rows, dtype=torch.bool)
    if drop_special:
        special = torch.tensor([i for i in tokenizer.all_special_ids if i < rows], dtype=torch.long)
        keep[special] = False
    if drop_unused:
        used = torch.zeros(rows, dtype=torch.bool)
        ids = torch.tensor(list(tokenizer.get_vocab().values())) if seen is None else seen.flatten().cpu()
        used[ids[ids < rows].long()] = True
        keep &= used
    if not keep.any():
        raise InputError("no vocabulary rows are left to search; drop fewer")
    return keep.nonzero()[:, 0]


@dataclass(frozen=True)
class RowReport:
    """One prompt row compared with the vocabulary."""

    row: int
    nearest: list[tuple[str, float]]
    """(token, value of the chosen measure), nearest first."""
    norm: float
    init: str | None
    """The token that it started from; None if it did not start from tokens."""
    init_rank: int | None
    """That token's rank among the nearest now; 0 = still the nearest. None if it is not searched."""
    drift: float
    """||E - E_init|| / ||E_init||."""


def inspect_prompt(
    model: Model,
    tokenizer: Tokenizer,
    prefix: Prefix,
    initial: Prefix,
    *,
    top: int = 5,
    metric: str = "cosine",
    centre: bool = False,
    drop_special: bool = False,
    drop_unused: bool = False,
    seen: Tensor | None = None,
) -> list[RowReport]:
    """Nearest tokens, norm, init and drift of every row; options as in :func:`search` and :func:`searched_rows`."""
    table = vocabulary(model)
    kept = searched_rows(len(table), tokenizer, drop_special=drop_special, drop_unused=drop_unused, seen=seen)
    values, found = search(table[kept], prefix.rows, top, metric, centre)
    start = torch.tensor(initial.ids) if initial.ids else None
    ranks: list[int | None] = [None] * prefix.k
    if start is not None:
        place = torch.full((len(table),), -1)
        place[kept] = torch.arange(len(kept))
        among = ranks_of(table[kept], prefix.rows, place[start].clamp(min=0), metric, centre).tolist()
        ranks = [n if at >= 0 else None for n, at in zip(among, place[start].tolist(), strict=True)]
    moved = (prefix.rows - initial.rows).norm(dim=1) / initial.rows.norm(dim=1).clamp(min=1e-12)
    return [
        RowReport(
            row=row,
            nearest=[
                (tokenizer.decode([int(kept[i])]), round(float(v), 4))
                for i, v in zip(found[row], values[row], strict=True)
            ],
            norm=round(float(prefix.rows[row].norm()), 4),
            init=None if start is None else tokenizer.decode([int(start[row])]),
            init_rank=ranks[row],
            drift=round(float(moved[row]), 4),
        )
        for row in range(prefix.k)
    ]


def nearest_hard_prompt(
    model: Model, tokenizer: Tokenizer, prefix: Prefix, *, metric: str = "cosine", drop_special: bool = False
) -> Prefix:
    """Build the nearest-token hard prompt: replace every learned row by its nearest real token.

    As an arm, its perplexity shows how much of a prompt survives as plain text.
    """
    table = vocabulary(model)
    kept = searched_rows(len(table), tokenizer, drop_special=drop_special, drop_unused=True)
    return from_ids(model, kept[search(table[kept], prefix.rows, 1, metric)[1][:, 0]], "nearest")
