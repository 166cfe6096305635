"""Answers through transformers' own ``generate``: the reference for the two loops of this package.

The prefix is a cache that is already full. The mask covers prefix and text. The text's ids stay ids, so that a
repetition penalty sees them.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ctplab.decoding.inputs import answer_ends, before_end, behind_prefix, crowded_window, padding_token, prepare
from ctplab.decoding.sampler import GREEDY, Sampler, processors
from ctplab.models import Tokenizer
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand

#: What a model's own generation settings may ask for, switched off: the sampler alone says how a token is chosen.
SAMPLER_ALONE: dict[str, Any] = {
    "do_sample": False,  # the sampler's processors leave one token to choose
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


@dataclass(frozen=True)
class Answer:
    """One generated continuation."""

    text: str
    n_tokens: int
    """An end token is not counted."""
    seconds: float
    """Wall time of the batch it came from."""


@torch.no_grad()
def generate(
    arm: Arm,
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    max_new_tokens: int = 32,
    sampler: Sampler = GREEDY,
    stop: str | None = None,
    raw: bool = False,
) -> list[Answer]:
    """Continue every text, up to ``stop`` if given. Raises InputError as :func:`ctplab.decoding.inputs.prepare` does.

    Texts are answered together. They take turns only if padding would push the prefix out of an attention window.
    """
    batch = prepare(arm, tokenizer, texts, max_new_tokens, raw)
    mask = behind_prefix(batch.mask, arm.prefix.k)
    if crowded_window(arm, mask, max_new_tokens):
        one_by_one: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop": stop, "raw": raw}
        return [generate(arm, tokenizer, [text], **one_by_one)[0] for text in texts]
    settings: dict[str, Any] = {**SAMPLER_ALONE, "logits_processor": processors(sampler, batch.mask)}
    if stop is not None:
        settings |= {"stop_strings": [stop], "tokenizer": tokenizer}
    if cache := expand(arm.model, compiled(arm), len(texts)):
        settings["past_key_values"] = cache
    padding, ends = padding_token(tokenizer), answer_ends(arm.model, tokenizer, raw)
    if ends:
        settings["eos_token_id"] = ends
    began = time.perf_counter()
    out = arm.model.generate(
        input_ids=batch.ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=padding, **settings
    )
    seconds = time.perf_counter() - began
    answers = []
    for row in out[:, batch.ids.shape[1] :].tolist():
        tokens = before_end(row, ends)
        while stop is not None and tokens and tokens[-1] == padding:  # it stopped before its batch mates
            tokens.pop()
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append(Answer(text if stop is None else text.split(stop)[0], len(tokens), seconds))
    return answers
