"""Causal attention by a CPU's own bfloat16 products, for the forward passes of a compression.

torch's CPU kernel computes the products of small tiles, at a tenth of the rate of large ones. Here a block of queries
meets all the keys before it at once, in products that are large enough. The scores above the diagonal are skipped block
by block, as that kernel does.

A product comes out rounded to bfloat16, and a score of 30 that is rounded by 0.06 moves its weight by 6%. Large scores
come from what all keys have in common. That adds the same to all scores of a query, and so it changes no weight. So the
mean of the keys is taken away before they are rounded.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "ctplab_bfloat16"
BLOCK = 128
"""Queries at a time: of 64, 128 and 256 the fastest, or within a tenth of it, for heads of 64 and 128 numbers."""


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling · Q Kᵀ) V for (B, heads, n, d) ``query`` and (B, groups, n, d) ``key``: (B, n, heads, d).

    ``value``: (B, groups, n, any). Products are in bfloat16, the softmax of a row in fp32. Knows no gradients.
    """
    (batch, heads, n, _), groups = query.shape, key.shape[1]
    each = heads // groups
    query = (query * scaling).bfloat16().view(batch, groups, each, n, -1)
    key = (key - key.mean(2, keepdim=True)).bfloat16().flatten(0, 1)  # (B groups, n, d)
    width, dtype = value.shape[-1], value.dtype
    value = value.bfloat16().flatten(0, 1)
    later = torch.full((BLOCK, BLOCK), -torch.inf, dtype=torch.bfloat16).triu(1)
    out = torch.empty(batch, n, groups, each, width, dtype=dtype)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        rows = end - start
        some = query[:, :, :, start:end].reshape(batch * groups, each * rows, -1)
        scores = (some @ key[:, :end].transpose(1, 2)).view(batch * groups, each, rows, end)
        scores[..., start:] += later[:rows, :rows]
        found = scores.softmax(-1).view(batch * groups, each * rows, end) @ value[:, :end]
        out[:, start:end] = found.view(batch, groups, each, rows, width).permute(0, 3, 1, 2, 4)
    return out.view(batch, n, heads, width)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """As transformers calls attention. What is not plainly causal goes to ``sdpa``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = settings.get("is_causal")
    plain = (getattr(module, "is_causal", True) if asked is None else asked) and attention_mask is None
    more = any(settings.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if not plain or more or settings.get("dropout") or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    scaling = settings.get("scaling")
    return causal(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


@contextmanager
def switched(block: nn.Module) -> Iterator[None]:
    """Inside, layers of ``block`` that take ``sdpa`` from transformers' attention table attend by :func:`causal`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    found = {}
    for module in block.modules():
        config = getattr(module, "config", None)
        by_table = hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")
        if by_table and getattr(config, "_attn_implementation", None) == "sdpa":
            found[id(config)] = config
    try:
        for config in found.values():
            config._attn_implementation = NAME
        yield
    finally:
        for config in found.values():
            config._attn_implementation = "sdpa"
