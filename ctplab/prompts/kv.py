"""Arms, and a prefix compiled to a KV cache: paid once per model, not once per text.

A prefix's keys and values do not depend on what follows, so they are computed for one row and expanded over the
batch. Masks are always k + n long: without one, ``generate`` would take the cached rows for the text's first
tokens and silently drop as many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model, embeddings
from ctplab.prompts.attention import prefix_attention
from ctplab.prompts.prefix import AnyPrefix, Prefix, none

KV = list[tuple[Tensor, Tensor]]
"""One (keys, values) pair a layer, each (1, heads, k, head_dim)."""


@dataclass(frozen=True)
class Arm:
    """What the lab compares: a model with a prefix in front of every input."""

    name: str
    model: Model
    prefix: AnyPrefix


def arms(
    full: Model | None = None,
    compressed: Model | None = None,
    hard: AnyPrefix | None = None,
    soft: AnyPrefix | None = None,
) -> list[Arm]:
    """The usual arms, for whatever is given: full, compressed, hard and soft (the latter two on compressed)."""
    found = []
    if full is not None:
        found.append(Arm("full", full, none(full)))
    if compressed is not None:
        found.append(Arm("compressed", compressed, none(compressed)))
        found += [Arm(name, compressed, p) for name, p in (("hard", hard), ("soft", soft)) if p is not None]
    return found


def check_width(model: Model, prefix: Prefix) -> None:
    """Raise InputError where the rows do not fit the model's embeddings."""
    d = embeddings(model).shape[1]
    if prefix.rows.shape[1] != d:
        raise InputError(f"the prompt has width {prefix.rows.shape[1]}, the model {d}: it was made for another model")


def compile_rows(model: Model, rows: Tensor) -> KV:
    """Keys and values of ``rows`` (k, d) in every layer. Differentiable in ``rows``. Empty for k = 0.

    Raises InputError where a sliding attention window is too short for the rows.
    """
    if rows.shape[0] == 0:
        return []
    from ctplab.prompts.cache import Recorder

    table, cache = embeddings(model), Recorder(config=model.config)
    embedded = rows.to(table.device, table.dtype)[None]
    out = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=1)
    kv = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    window = min(keys.shape[2] for keys, _ in kv) + 1
    if window <= rows.shape[0]:  # the first rows are gone already, and the positions behind them would be wrong
        raise InputError(f"{rows.shape[0]} prompt rows, but this model's attention window takes fewer than {window}")
    return kv


def compile_prefix(model: Model, prefix: AnyPrefix) -> KV:
    """Keys and values of any prefix. Raises InputError where it was made for a model of another shape."""
    if isinstance(prefix, Prefix):
        check_width(model, prefix)
        return compile_rows(model, prefix.rows)
    table = embeddings(model)
    own = compile_rows(model, table.new_zeros(1, table.shape[1]))
    shapes = [(k.shape[1::2], v.shape[1::2]) for k, v in own]  # heads and their width, layer by layer
    if shapes != [(k.shape[1::2], v.shape[1::2]) for k, v in prefix.kv]:
        raise InputError(f"the KV prefix {prefix.name!r} was made for other layers or heads than this model has")
    return [(k.to(table.device, table.dtype), v.to(table.device, table.dtype)) for k, v in prefix.kv]


def expand(model: Model, kv: KV, batch: int):
    """A fresh cache for ``batch`` rows (models write into it); None for an empty prefix."""
    from transformers import DynamicCache

    if not kv:
        return None
    pairs = [(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in kv]
    return DynamicCache(ddp_cache_data=pairs, config=model.config)


def _inputs(model: Model, kv: KV, ids: Tensor) -> dict[str, Any]:
    from ctplab.prompts.cache import Behind

    if not kv:
        return {"input_ids": ids, "use_cache": False}
    cache = Behind(kv, len(ids), model.config)
    mask = torch.ones(len(ids), kv[0][0].shape[2] + ids.shape[1], dtype=torch.long, device=ids.device)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}


def logits_after(model: Model, kv: KV, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of ``ids`` (B, T, no padding) behind a compiled prefix."""
    with prefix_attention(model):
        return model(**_inputs(model, kv, ids)).logits


@dataclass(frozen=True)
class Halves:
    """A model cut before its head, so that logits can be made for a few rows at a time."""

    model: Model
    head: Callable[[Tensor], Tensor]
    """(n, d) -> (n, V)."""
    plain: bool
    """False: the model changes its logits after the head (soft caps, scales), so ``states`` are the logits."""

    def states(self, kv: KV, ids: Tensor) -> Tensor:
        """(B, T, d): what the head reads, for ``ids`` (B, T, no padding) behind a compiled prefix."""
        if not self.plain:
            return logits_after(self.model, kv, ids)
        with prefix_attention(self.model):
            return self.model.base_model(**_inputs(self.model, kv, ids))[0]


@torch.no_grad()
def halves(model: Model) -> Halves:
    """Cut ``model`` before its head, where running the head by itself gives the model's own logits."""
    head, body = model.get_output_embeddings(), model.base_model
    if head is not None and body is not model:
        probe = torch.arange(min(64, len(embeddings(model))), device=embeddings(model).device)[None]
        states = body(input_ids=probe, use_cache=False)[0]
        if states.shape[-1] == head.weight.shape[1]:
            logits = model(input_ids=probe, use_cache=False).logits
            if torch.equal(head(states).to(logits.device), logits):
                return Halves(model, lambda x: head(x).to(x.device), True)
    return Halves(model, lambda logits: logits, False)
