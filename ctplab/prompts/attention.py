"""Causal attention behind cached keys, without a mask.

PyTorch's fast causal kernels need as many queries as keys. A prefix in the cache adds k keys. transformers then builds
a dense (n, k + n) mask, and no kernel can skip what it masks: at n = 1024 that costs more than the shared prefix saves.
So this file puts k rows of zeros in front of the queries, discards their outputs, and lets the plain causal kernel do
the rest. The result is exact, forward and backward.

A pass may also hold the prefix and several texts behind it in one long row (see ``prompts/together``). Then this file
takes the row apart, so that each text attends to the prefix and to itself.

A pass can be watched (:class:`Watch`): whoever wants to know where a text looks gets each layer's queries and keys.

Several threads may use one model. The switch is a setting of the shared configuration, so it stays on while anyone
needs it. It means something only inside the block: to all others it is transformers' own ``sdpa`` under another name.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.models import Model

NAME = "ctplab_prefix"
_lock = threading.Lock()
_users: dict[int, int] = {}
"""Identity of a configuration that is switched -> how many blocks need it."""
_inside = threading.local()


class Layout(NamedTuple):
    """A long row: ``k`` prefix rows, then ``batch`` texts of ``length`` tokens each."""

    k: int
    batch: int
    length: int

    @property
    def rows(self) -> int:
        """Number of rows in all."""
        return self.k + self.batch * self.length

    def texts(self, x: Tensor) -> Tensor:
        """The texts' part of ``x`` (1, heads, k + batch · length, d): (batch, heads, length, d)."""
        return x[0, :, self.k :].unflatten(1, (self.batch, self.length)).transpose(0, 1)


class Watch(Protocol):
    """Is called once a layer, in order, after the layer has attended."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, out: Tensor
    ) -> None:
        """``query`` (B, heads, n, head_dim), ``key`` and ``value`` (B, groups, k + n, head_dim).

        ``mask``: as ``sdpa`` takes it; None is causal. ``out`` (B, n, heads, head_dim): what the layer made of them.
        """
        ...


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Queries (B, heads, n, head_dim), keys and values (B, heads, k + n, head_dim) -> (B, n, heads, head_dim)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout: Layout | None = settings.pop("layout", None)
    if layout is not None:
        return _attend_together(module, query, key, value, attention_mask, layout, settings), None
    watch: Watch | None = settings.pop("watch", None)
    texts, n, cached = query, query.shape[2], key.shape[2] - query.shape[2]
    if attention_mask is None and cached > 0 and n > 1 and getattr(module, "is_causal", True):
        query = F.pad(query, (0, 0, cached, 0))
        settings["is_causal"] = True
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if watch is not None:
        watch(texts, key, value, attention_mask, settings.get("scaling"), out[:, -n:])
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
    """The prefix attends to itself, each text to the prefix and itself: (1, k + batch · length, heads, head_dim).

    Every text gets the prefix's queries in front, because the plain causal kernel needs as many queries as keys. So the
    first text's pass is also the prefix's own; the other copies of its outputs are discarded.
    Raises ValueError if a layer brings a mask, such as that of a sliding window: ``together.fits`` then says no.
    """
    if mask is not None:
        raise ValueError("this layer has a mask of its own: prefix and texts cannot stand in one long row")
    query, key, value = (
        torch.cat([x[:, :, : layout.k].expand(layout.batch, -1, -1, -1), layout.texts(x)], 2)
        for x in (query, key, value)
    )
    out = _attend(module, query, key, value, None, **{**settings, "is_causal": True})[0]
    return torch.cat([out[:1, : layout.k], out[:, layout.k :].flatten(0, 1)[None]], 1)


def _mask(mask_function: Any = None, attention_mask: Tensor | None = None, **sizes: Any) -> Tensor | None:
    """Return None if the mask would be purely causal, else ``sdpa``'s mask (sliding windows, ...).

    Texts behind a prefix have no padding (see ``prompts/head``). To look for some would make a card wait for the host.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if not getattr(_inside, "depth", 0):  # another thread's pass
        return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **sizes)
    if mask_function is causal_mask_function and sizes.get("local_size") is None:
        return None
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **sizes)


def takes_switch(model: Model) -> bool:
    """Whether the model takes ``sdpa`` from transformers' attention table: BLOOM, say, brings its own attention."""
    config = model.config
    by_table = hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")
    return by_table and config._attn_implementation in ("sdpa", NAME) and getattr(config, "is_causal", True)


@contextmanager
def prefix_attention(model: Model) -> Iterator[None]:
    """Inside the block, this thread's passes through ``model`` attend without masks, if it :func:`takes_switch`.

    The caller knows that this gives the same logits (``ways``).
    """
    if not takes_switch(model):
        yield
        return
    with switched(model.config):
        _inside.depth = getattr(_inside, "depth", 0) + 1
        try:
            yield
        finally:
            _inside.depth -= 1


@contextmanager
def switched(config: Any) -> Iterator[None]:
    """Inside the block, a model with this configuration attends by :data:`NAME`, whatever other threads do."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    with _lock:
        _users[id(config)] = _users.get(id(config), 0) + 1
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _lock:
            _users[id(config)] -= 1
            if _users[id(config)] == 0:
                del _users[id(config)]
                config._attn_implementation = "sdpa"
