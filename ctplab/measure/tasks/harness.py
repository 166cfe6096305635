"""An arm as a model that lm-eval can ask.

This differs from giving lm-eval a PEFT adapter. The context is k tokens shorter, because learned positions would
overflow. The embeddings are never resized, so every arm keeps the same softmax. The prefix is computed once. As
everywhere in the lab, a text reads alike behind every arm: the start token is a setting, and no end token is written.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ctplab.decoding.inputs import behind_prefix, left_padded, padding_token
from ctplab.models import Tokenizer
from ctplab.models.anatomy import context_length
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand
from ctplab.prompts.head import logits_after
from ctplab.text.reading import start_ids


def as_lm(arm: Arm, tokenizer: Tokenizer, batch: int, start: str = "auto") -> Any:
    """An lm-eval model that answers as ``arm`` does. Raises InputError if the prefix does not fit the model.

    ``start``: as for :func:`ctplab.text.reading.encode`.
    """
    HFLM: Any = import_module("lm_eval.models.huggingface").HFLM

    class PrefixLM(HFLM):
        """HFLM with live objects and a prefix in front of every input."""

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
        ) -> list[int]:
            ids = _read(tokenizer, string, [] if add_special_tokens is False else first)
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
        ) -> tuple[Tensor, Tensor]:
            rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
            batch = left_padded(rows, arm.model, padding_token(tokenizer))  # lm-eval pads what it continues on the left
            return batch.ids, batch.mask

        def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
            with torch.no_grad():  # inputs are padded on the right: what is scored never sees it
                return logits_after(arm.model, kv, inps)

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            cache = expand(arm.model, kv, len(context))
            if cache is not None:
                settings["attention_mask"] = behind_prefix(settings["attention_mask"], arm.prefix.k)
                settings["past_key_values"] = cache
            return super()._model_generate(context, max_length, stop, **settings)

    kv, first = compiled(arm), start_ids(tokenizer, start)
    limit = context_length(arm.model)
    return PrefixLM(
        pretrained=arm.model,
        tokenizer=tokenizer,
        max_length=None if limit is None else limit - arm.prefix.k,
        batch_size=batch,
    )


def _read(tokenizer: Tokenizer, text: str, first: list[int]) -> list[int]:
    """The ids of ``text`` behind ``first``. It may be empty: lm-eval asks for the ids of continuations too."""
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return ids if first and ids[: len(first)] == first else first + ids


@contextmanager
def only_errors() -> Iterator[None]:
    """Inside, lm-eval does not warn about live model objects and local data, which are wanted here."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
