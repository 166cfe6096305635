"""A prefix compiled to keys and values: paid once per model, not once per text.

A prefix's keys and values do not depend on the text that follows. So they are computed for one row and expanded over
the batch. They are kept as long as model and prefix live, and computed again once a tensor of either was replaced,
moved or written to. Callers need not invalidate anything. Two cases leave no trace of a change, so nothing is kept for
them: models with PEFT adapters, which switch without touching a tensor, and tensors made under
``torch.inference_mode``. A write through ``tensor.data`` goes unnoticed, because it hides from torch as well; nothing
in ctplab does that.

Some models keep more than keys and values (recurrent states, convolutions), or their attention behind a cache is not
what it is behind the same rows (``ways`` tries it). Their prefix stays :class:`Concatenated`: it is read with every
text again.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import embed, embeddings
from ctplab.models.fingerprints import Seen, see, unchanged
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import AnyPrefix, Prefix, tensors
from ctplab.prompts.ways import last_only, ways

Pairs = list[tuple[Tensor, Tensor]]
"""One (keys, values) pair per layer, each (1, heads, k, head_dim)."""


@dataclass(frozen=True)
class Concatenated:
    """A prefix that cannot be kept as keys and values: rows that stand in front of every text's embeddings."""

    rows: Tensor  # (1, k, d), as the model's embeddings are

    def before(self, model: Model, ids: Tensor) -> Tensor:
        """The rows in front of the embeddings of ``ids`` (B, n): (B, k + n, d)."""
        return torch.cat([self.rows.expand(len(ids), -1, -1), embed(model, ids)], 1)


KV = Pairs | Concatenated
"""A compiled prefix; empty for k = 0."""

_lock = Lock()
_kept: WeakKeyDictionary[Model, WeakKeyDictionary[AnyPrefix, tuple[Seen | None, KV]]] = WeakKeyDictionary()


def check_width(model: Model, prefix: Prefix) -> None:
    """Raise InputError if the rows do not fit the model's embeddings."""
    d = embeddings(model).shape[1]
    if prefix.rows.shape[1] != d:
        raise InputError(f"the prompt has width {prefix.rows.shape[1]}, the model {d}: it was made for another model")


def compile_rows(model: Model, rows: Tensor) -> KV:
    """Compute the keys and values of ``rows`` (k, d) in every layer. Differentiable in ``rows``. Empty for k = 0.

    Raises InputError if a sliding attention window is too short for the rows, and if the model takes no rows at all.
    """
    found = ways(model)
    if rows.shape[0] == 0:
        return []
    from ctplab.prompts.cache import Recorder

    table = embeddings(model)
    embedded = rows.to(table.device, table.dtype)[None]
    if not found.rows:
        raise InputError(
            f"{type(model).__name__} does not give a text's logits for the text's embeddings: no prompt can stand in "
            "front of them"
        )
    if not found.compiled:
        return Concatenated(embedded)
    cache = Recorder(config=model.config)
    out = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True, **last_only(model))
    kv = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    window = min(keys.shape[2] for keys, _ in kv) + 1
    if window <= rows.shape[0]:  # the first rows are gone already, and the positions behind them would be wrong
        raise InputError(f"{rows.shape[0]} prompt rows, but this model's attention window takes fewer than {window}")
    return kv


def compile_prefix(model: Model, prefix: AnyPrefix) -> KV:
    """Compute the keys and values of any prefix. Raises InputError if it was made for a model of another shape."""
    if isinstance(prefix, Prefix):
        check_width(model, prefix)
        return compile_rows(model, prefix.rows)
    table = embeddings(model)
    own = pairs(model, compile_rows(model, table.new_zeros(1, table.shape[1])))
    shapes = [(k.shape[1::2], v.shape[1::2]) for k, v in own]  # heads and their width, layer by layer
    if shapes != [(k.shape[1::2], v.shape[1::2]) for k, v in prefix.kv]:
        raise InputError(f"the KV prefix {prefix.name!r} was made for other layers or heads than this model has")
    return [(k.to(table.device, table.dtype), v.to(table.device, table.dtype)) for k, v in prefix.kv]


def pairs(model: Model, kv: KV) -> Pairs:
    """``kv`` as keys and values. Raises InputError if this model's prefixes cannot be kept so."""
    if isinstance(kv, Concatenated):
        raise InputError(f"{type(model).__name__} keeps more than keys and values, so a prompt cannot be given as such")
    return kv


@torch.no_grad()
def compiled(arm: Arm) -> KV:
    """Keys and values of the arm's prefix, computed at the first call. Raises InputError if it does not fit."""
    found = [*arm.model.parameters(), *arm.model.buffers(), *tensors(arm.prefix)]
    if hasattr(arm.model, "peft_config"):
        return compile_prefix(arm.model, arm.prefix)
    with _lock:  # answers that start at the same time compile once
        of_model = _kept.setdefault(arm.model, WeakKeyDictionary())
        seen, kv = of_model.get(arm.prefix, (None, []))
        if not unchanged(seen, found):
            kv = compile_prefix(arm.model, arm.prefix)
            of_model[arm.prefix] = see(found), kv
        return kv


def expand(model: Model, kv: KV, batch: int) -> Any:
    """Return a fresh cache for ``batch`` rows (models write into it), or None for an empty prefix."""
    from transformers import DynamicCache

    found = pairs(model, kv)
    if not found:
        return None
    wide = [(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in found]
    return DynamicCache(ddp_cache_data=wide, config=model.config)
