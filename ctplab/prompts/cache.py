"""The two caches that a prefix needs, besides the one that generation fills, and which models have such caches.

Both allow a block to run twice on the same input, as recomputation does (see ``learning.recompute``).
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from ctplab.models import Model


def keeps_keys_and_values(model: Model) -> bool:
    """Whether the model's cache holds keys and values in every layer, and no other state (recurrent, convolutions)."""
    return _layers_are(model, (DynamicLayer, DynamicSlidingWindowLayer))


def keeps_all(model: Model) -> bool:
    """Whether the model's cache keeps all that it needs to go on, as far as kinds of layers tell.

    Not so for caches that choose among their keys (an index): a long text and its last token alone choose differently.
    """
    linear = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)
    return _layers_are(model, (DynamicLayer, DynamicSlidingWindowLayer, *linear))


def _layers_are(model: Model, kinds: tuple[type, ...]) -> bool:
    try:
        layers = Recorder(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a configuration that transformers makes no cache of
        return False
    return all(type(layer) in kinds for layer in layers)


class Recorder(DynamicCache):
    """Starts empty and keeps the first keys and values of each layer: those of the prefix."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.get_seq_length(layer_idx) > 0:  # the block runs again
            return key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class Behind(DynamicCache):
    """Holds a prefix and puts it in front of each layer's new keys and values, but does not keep the new ones.

    So a text behind a prefix takes the memory of one layer's keys and values, not of all layers'. A prefix's are those
    of one text, and are expanded over the batch where they are used: the gradient of the copies is then summed in each
    layer's turn. If they were expanded before the pass, all layers' gradients would wait for its end. Each instance
    serves one forward pass only.
    """

    def __init__(self, kv: list[tuple[Tensor, Tensor]], config: Any) -> None:
        super().__init__(kv, config=config)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer = vars(self.layers[layer_idx])
        prefix, batch = dict(layer), len(key_states)
        layer.update({name: layer[name].expand(batch, -1, -1, -1) for name in ("keys", "values")})
        shown = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer.update(prefix)
        return shown
