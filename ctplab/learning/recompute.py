"""Learning through large models: a block keeps only its input, and the backward pass runs the block again.

Memory then holds the activations of one block instead of all, and a step takes one more forward pass. transformers' own
gradient checkpointing cannot be used: it drops the cache that holds the prefix, and it needs training mode.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ctplab.models import Model
from ctplab.models.anatomy import blocks
from ctplab.prompts.attention import NAME, switched


def recompute(model: Model) -> Model:
    """Make ``model`` recompute its blocks in backward passes. Losses and gradients stay the same to the bit."""
    for _, block in blocks(model):
        block.forward = _twice(block.forward, model.config)
    return model


def _twice(forward: Callable, config: Any) -> Callable:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """The second pass attends as the first one did, which behind a prefix is not the model's own way."""
        behind_prefix = config._attn_implementation == NAME
        return nullcontext(), switched(config) if behind_prefix else nullcontext()

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # A step that a card records draws no random numbers (``learning/graph``), and their state cannot be read then.
        random = not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=random, context_fn=contexts, **kwargs)

    return run
