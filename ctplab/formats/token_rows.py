"""Learned rows as rows of the vocabulary: the embedding gains them, and the output head can never choose them.

V' rows, d wide. The embedding holds E / c at the new ids, where c is what the model's own embedding layer multiplies
rows by (Gemma: √d; nearly all others: 1). A tied head is untied, since a learned row would answer as well as ask.

At the new ids the head holds w̄, the mean of the rows of a few tokens that the model hardly ever says. w̄·h is the mean
of their logits, so for no hidden state h does it exceed the largest logit: greedy decoding never chooses a new token.
By Jensen's inequality exp(w̄·h) is at most the mean of their exp(w·h): a new token is never more likely than those few
are on average. No weight does better for every h, since a linear logit that is very low for h is very high for -h.
Readers that can suppress tokens are told to as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import context_length, embed, embeddings
from ctplab.prompts.prefix import Prefix

QUIET = 16
"""How many tokens' rows make the new tokens' row of the head."""
PROBE = 256
"""Tokens on which it is found out which those are."""
NEVER = -1e4
"""The bias of a new token, if the head has biases: e to this power is zero in every format."""


@dataclass(frozen=True)
class Tables:
    """Names of the two tensors that have a row for every token, and of the head's bias."""

    embedding: str
    head: str
    bias: str | None


def tables(model: Model) -> Tables:
    """Find them. Raises InputError for models that look tokens up in more tables, or have no plain output head."""
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    kind, names = type(model).__name__, {id(module): name for name, module in model.named_modules()}
    if not isinstance(head, nn.Linear):
        raise InputError(f"{kind} has no plain output head: its vocabulary cannot grow")
    others = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not source]
    if any(m.num_embeddings == source.num_embeddings for m in others):
        raise InputError(f"{kind} looks tokens up in more than one table: rows for one of them are not enough")
    if source.num_embeddings != head.out_features:
        raise InputError(f"{kind} reads {source.num_embeddings} tokens and predicts {head.out_features}")
    bias = f"{names[id(head)]}.bias" if head.bias is not None else None
    return Tables(f"{names[id(source)]}.weight", f"{names[id(head)]}.weight", bias)


@torch.no_grad()
def scale(model: Model) -> float:
    """What the model's embedding layer multiplies rows by. Raises InputError if it does more to them than that."""
    table = embeddings(model)
    longest = table.float().norm(dim=1).argmax()
    row, found = table[longest].float(), embed(model, longest).float()
    factor = float((found @ row) / (row @ row))
    # one rounding to the model's dtype: 2^-8 in bfloat16
    if not torch.allclose(found, factor * row, rtol=2**-7, atol=2**-7 * abs(factor) * float(row.abs().max())):
        raise InputError(f"{type(model).__name__} does more to an embedding than scale it: rows cannot become tokens")
    return factor


def with_rows(table: Tensor, rows: Tensor, ids: Sequence[int], size: int) -> Tensor:
    """``table`` (V, d) grown to (size, d), with ``rows`` (k, d) at ``ids`` and zeros in whatever is left."""
    grown = table.new_zeros(size, table.shape[1])
    grown[: len(table)] = table
    grown[list(ids)] = rows.to(grown)
    return grown


@torch.no_grad()
def log_probabilities(model: Model, prefix: Prefix, seed: int = 0) -> Tensor:
    """What the model expects behind the prefix and random tokens: (n, V) in fp32, n at most :data:`PROBE`."""
    table, room = embeddings(model), (context_length(model) or PROBE + prefix.k) - prefix.k
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(table), (min(PROBE, max(room, 1)),), generator=draw)
    rows = torch.cat([prefix.rows.to(table), embed(model, ids)])
    out = model(inputs_embeds=rows[None], use_cache=False).logits[0, prefix.k - 1 :]
    return out.float().log_softmax(-1)


def quietest(log_probabilities: Tensor, without: Sequence[int]) -> Tensor:
    """Ids of the :data:`QUIET` tokens whose greatest probability anywhere in (n, V) is least."""
    greatest = log_probabilities.max(0).values
    greatest[[i for i in without if i < len(greatest)]] = torch.inf
    return greatest.argsort()[:QUIET]


def with_silent_rows(head: Tensor, quiet: Tensor, ids: Sequence[int], size: int) -> Tensor:
    """``head`` (V, d) grown to (size, d), with the mean of its rows ``quiet`` at ``ids`` and in all rows behind V."""
    silent = never_chosen(ids, len(head), size)
    return with_rows(head, head[quiet].mean(0, dtype=torch.float32).expand(len(silent), -1), silent, size)


def with_silent_biases(bias: Tensor, ids: Sequence[int], size: int) -> Tensor:
    """``bias`` (V,) grown to (size,), with :data:`NEVER` at the same places."""
    silent = never_chosen(ids, len(bias), size)
    return with_rows(bias[:, None], torch.full((len(silent), 1), NEVER), silent, size)[:, 0]


def never_chosen(ids: Sequence[int], before: int, size: int) -> list[int]:
    """Rows that must not be chosen: the new tokens, and padding that nobody learned."""
    return sorted({*ids, *range(before, size)})
