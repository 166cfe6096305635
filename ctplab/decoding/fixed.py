"""One token a row through a model whose cache has a fixed length: a function of tensors that stay where they are.

A cache that grows has new tensors after every token, so a pass over it cannot be recorded. Here new keys and values are
written into their place, and places that are empty yet are hidden by the mask. The logits are those of the growing
cache: hidden places get a weight of exactly 0.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ctplab.models import Model
from ctplab.prompts.ways import last_only


class FixedLayer(DynamicLayer):
    """Keys and values of all places, (B, heads, length, head_dim). ``at`` (1,): the place that is written next."""

    keys: Any
    values: Any

    def __init__(self, like: Any, length: int, at: Tensor) -> None:
        super().__init__()
        self.at, self.is_initialized = at, True
        self.keys, self.values = (x.new_zeros(*x.shape[:2], length, x.shape[3]) for x in (like.keys, like.values))
        self.dtype, self.device = self.keys.dtype, self.keys.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values, (B, heads, 1, head_dim), and return those of all places."""
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """With the token that is being read, all places are taken."""
        return self.keys.shape[2] - 1

    def load(self, layer: Any) -> None:
        """Take over what a growing layer holds. The rest is emptied: an infinity there would survive a weight of 0."""
        for mine, found in ((self.keys, layer.keys), (self.values, layer.values)):
            width = found.shape[2]
            mine[:, :, :width].copy_(found)
            mine[:, :, width:].zero_()


class FixedStep:
    """Reads one token of each row, at one place after the other."""

    def __init__(self, cache: Cache, length: int) -> None:
        """``cache`` is a growing one that has been filled: it tells shapes, types and the device."""
        layers: list[Any] = cache.layers
        first = layers[0].keys
        self.batch, self.length, self.dtype = len(first), length, first.dtype
        self.ids = torch.zeros(self.batch, 1, dtype=torch.long, device=first.device)
        self.at = torch.zeros(1, dtype=torch.long, device=first.device)
        self.hidden = torch.zeros(self.batch, length, dtype=torch.bool, device=first.device)  # padding
        self.padding = torch.zeros(self.batch, 1, dtype=torch.long, device=first.device)  # its tokens in each row
        self.places = torch.arange(length, device=first.device)
        self.cache = Cache(layers=[FixedLayer(layer, length, self.at) for layer in layers])

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(x.nbytes for layer in self._layers for x in (layer.keys, layer.values))

    @property
    def _layers(self) -> list[Any]:
        return self.cache.layers

    def load(self, cache: Cache, mask: Tensor) -> None:
        """Take over a growing cache of w places. ``mask`` (B, w): 1 for tokens and prefix, 0 for padding."""
        for mine, found in zip(self._layers, cache.layers, strict=True):
            mine.load(found)
        self.hidden.zero_()
        self.hidden[:, : mask.shape[1]] = mask == 0
        self.padding.copy_((mask == 0).sum(1, keepdim=True))

    def put(self, tokens: Tensor, place: int) -> None:
        """Say what :meth:`run` reads next: ``tokens`` (B, 1), which take this place."""
        self.ids.copy_(tokens)
        self.at.fill_(place)

    def run(self, model: Model) -> Tensor:
        """The logits (B, V) behind the tokens. To run it again changes nothing."""
        seen = (self.places <= self.at) & ~self.hidden
        bias = torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)
        inputs: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.at - self.padding}
        # transformers takes a mask of four dimensions as it is
        inputs |= {"attention_mask": bias[:, None, None], "past_key_values": self.cache, "use_cache": True}
        return model(**inputs, **last_only(model)).logits[:, -1]
