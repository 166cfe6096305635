"""Logits of a text behind a prefix, and a model cut before its head.

Masks are always k + n long. Without a mask, ``generate`` would take the cached rows for the first tokens of the text
and silently drop as many.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.prompts.attention import Watch, prefix_attention
from ctplab.prompts.compiled import KV, Concatenated
from ctplab.prompts.ways import ways


def _inputs(model: Model, kv: KV, ids: Tensor) -> dict[str, Any]:
    from ctplab.prompts.cache import Behind

    if isinstance(kv, Concatenated):
        return {"inputs_embeds": kv.before(model, ids), "use_cache": False}
    if not kv:
        found: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if ways(model).maskless:  # so that transformers does not look for several texts in a row: it asks the device
            found["attention_mask"] = torch.ones_like(ids)
        return found
    cache = Behind(kv, model.config)
    mask = torch.ones(len(ids), kv[0][0].shape[2] + ids.shape[1], dtype=torch.long, device=ids.device)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}


def _attention(model: Model) -> AbstractContextManager:
    """Attention without masks if this model gives the same logits so; its own if not. Raises InputError as ``ways``."""
    return prefix_attention(model) if ways(model).maskless else nullcontext()


def logits_after(model: Model, kv: KV, ids: Tensor) -> Tensor:
    """Return the logits (B, T, V) of ``ids`` (B, T, no padding) behind a compiled prefix.

    Raises InputError if the model is not causal.
    """
    with _attention(model):
        return model(**_inputs(model, kv, ids)).logits[:, -ids.shape[1] :]


def watched(model: Model, kv: KV, ids: Tensor, watch: Watch) -> None:
    """Pass ``ids`` (B, T, no padding) through the model behind a compiled prefix; ``watch`` sees every layer attend.

    Only for models whose own attention the lab may replace (``ways``: maskless and compiled). Raises TypeError or
    ValueError if the model does not hand the watch on.
    """
    with prefix_attention(model):
        model.base_model(**_inputs(model, kv, ids), watch=watch)


@dataclass(frozen=True)
class Halves:
    """A model cut before its head, so that logits can be made for a few rows at a time."""

    model: Model
    head: Callable[[Tensor], Tensor]
    """(n, d) -> (n, V)."""
    plain: bool
    """False if the model changes its logits after the head (soft caps, scales); ``states`` are the logits then."""

    @property
    def width(self) -> int | None:
        """Values of a hidden state; None if ``states`` are logits."""
        return self.model.get_output_embeddings().weight.shape[1] if self.plain else None

    def states(self, kv: KV, ids: Tensor) -> Tensor:
        """Return the head's input (B, T, d) for ``ids`` (B, T, no padding) behind a compiled prefix."""
        if not self.plain:
            return logits_after(self.model, kv, ids)
        with _attention(self.model):
            return self.model.base_model(**_inputs(self.model, kv, ids))[0][:, -ids.shape[1] :]


@torch.no_grad()
def halves(model: Model) -> Halves:
    """Cut ``model`` before its head. It stays whole if the head alone does not give exactly the model's logits."""
    head, body = model.get_output_embeddings(), model.base_model
    if head is not None and body is not model:
        probe = torch.arange(min(64, len(embeddings(model))), device=embeddings(model).device)[None]
        states = body(input_ids=probe, use_cache=False)[0]
        if states.shape[-1] == head.weight.shape[1]:
            logits = model(input_ids=probe, use_cache=False).logits
            if torch.equal(head(states).to(logits.device), logits):
                return Halves(model, lambda x: head(x).to(x.device), True)
    return Halves(model, lambda logits: logits, False)
