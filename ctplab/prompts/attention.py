"""Causal attention behind cached keys, without a mask.

PyTorch's fast causal kernels need as many queries as keys. A prefix in the cache adds k keys. transformers then builds
a dense (n, k + n) mask, and no kernel can skip what it masks: at n = 1024 that costs more than the shared prefix saves.
So this file puts k rows of zeros in front of the queries, discards their outputs, and lets the plain causal kernel do
the rest. The result is exact, forward and backward.

A pass may also hold the prefix and several texts behind it in one long row (see ``prompts/together``). Then this file
takes the row apart, so that each text attends to the prefix and to itself.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.models import Model

NAME = "ctplab_prefix"


class Layout(NamedTuple):
    """A long row: ``k`` prefix rows, then ``batch`` texts of ``length`` tokens each."""

    k: int
    batch: int
    length: int

    def texts(self, x: Tensor) -> Tensor:
        """The texts' part of ``x`` (1, heads, k + batch · length, d): (batch, heads, length, d)."""
        return x[0, :, self.k :].unflatten(1, (self.batch, self.length)).transpose(0, 1)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Queries (B, heads, n, head_dim), keys and values (B, heads, k + n, head_dim) -> (B, n, heads, head_dim)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout: Layout | None = settings.pop("layout", None)
    if layout is not None:
        return _attend_together(module, query, key, value, attention_mask, layout, settings), None
    n, cached = query.shape[2], key.shape[2] - query.shape[2]
    if attention_mask is None and cached > 0 and n > 1:
        query = F.pad(query, (0, 0, cached, 0))
        settings["is_causal"] = True
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return out[:, -n:], None


def _attend_together(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    layout: Layout,
    settings: dict[str, Any],
) -> Tensor:
    """The prefix attends to itself, each text to the prefix and itself: (1, k + batch · length, heads, head_dim)."""
    if mask is not None:
        raise NotImplementedError("one long row needs plain causal attention")
    front = [x[:, :, : layout.k] for x in (query, key, value)]
    first = _attend(module, front[0], front[1], front[2], None, **{**settings, "is_causal": True})[0]
    query, key, value = (layout.texts(x) for x in (query, key, value))
    key, value = (
        torch.cat([x.expand(layout.batch, -1, -1, -1), own], 2) for x, own in zip(front[1:], (key, value), strict=True)
    )
    behind = _attend(module, query, key, value, None, **settings)[0]
    return torch.cat([first, behind.flatten(0, 1)[None]], 1)


def _mask(mask_function: Any = None, attention_mask: Tensor | None = None, **sizes: Any) -> Tensor | None:
    """Return None if the mask would be purely causal, else ``sdpa``'s mask (sliding windows, ...).

    Texts behind a prefix have no padding (see ``prompts/head``). To look for some would make a card wait for the host.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if mask_function is causal_mask_function and sizes.get("local_size") is None:
        return None
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **sizes)


@contextmanager
def prefix_attention(model: Model) -> Iterator[None]:
    """Inside the block, ``model`` attends without masks if it takes ``sdpa`` from transformers' attention table.

    Other models stay as they are: BLOOM and Falcon, for example, bring their own attention.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    config = model.config
    by_table = hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")
    if not by_table or config._attn_implementation != "sdpa" or not getattr(config, "is_causal", True):
        yield
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
