"""An arm as a model that lm-eval can ask.

Differences to giving lm-eval a PEFT adapter: the context is shortened by k (learned positions would overflow), the
embeddings are never resized (every arm keeps the same softmax), and the prefix is computed once. As everywhere in the
lab, a text behind a prefix has no start token of its own; without a prefix the tokenizer's own rule holds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ctplab.models import Tokenizer
from ctplab.models.anatomy import context_length
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand
from ctplab.prompts.head import logits_after


def as_lm(arm: Arm, tokenizer: Tokenizer, batch: int) -> Any:
    """An lm-eval model that answers as ``arm`` does."""
    HFLM: Any = import_module("lm_eval.models.huggingface").HFLM

    class PrefixLM(HFLM):
        """HFLM with live objects and a prefix in front of every input."""

        def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
            with torch.no_grad():  # inputs are padded on the right: what is scored never sees it
                return logits_after(arm.model, kv, inps)

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            cache = expand(arm.model, kv, len(context))
            if cache is not None:
                mask = settings["attention_mask"]
                settings["attention_mask"] = torch.cat([mask.new_ones(len(mask), arm.prefix.k), mask], 1)
                settings["past_key_values"] = cache
            return super()._model_generate(context, max_length, stop, **settings)

    kv = compiled(arm)
    limit = context_length(arm.model)
    return PrefixLM(
        pretrained=arm.model,
        tokenizer=tokenizer,
        max_length=None if limit is None else limit - arm.prefix.k,
        batch_size=batch,
        add_bos_token=False if arm.prefix.k else None,
    )


@contextmanager
def only_errors() -> Iterator[None]:
    """lm-eval warns about live model objects and local data, which are what is wanted here."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
