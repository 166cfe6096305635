"""Learning through large models: a block keeps its input only, and is run again when its gradient is asked for.

Activations of all blocks become one block's, and learning takes a forward pass more. transformers' own gradient
checkpointing cannot be used: it drops the cache that the prefix stands in, and asks for training mode.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ctplab.models import Model
from ctplab.models.anatomy import blocks


def recompute(model: Model) -> Model:
    """From now on ``model`` recomputes its blocks in backward passes. Losses and gradients stay the same bits."""
    for _, block in blocks(model):
        block.forward = _twice(block.forward, model.config)
    return model


def _twice(forward: Callable, config: Any) -> Callable:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _attention(config, config._attn_implementation)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    """Attend as the first pass did: behind a prefix that is not the model's own way (see ``attention``)."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
