"""Answers through transformers' own ``generate``: the reference for the two loops of this package.

The prefix is a cache that is already full. The mask covers prefix and text. The text's ids stay ids, so that a
repetition penalty sees them.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ctplab.decoding.inputs import Batch, answer_ends, before_end, behind_prefix, crowded_window, padding_token, prepare
from ctplab.decoding.sampler import GREEDY, Sampler, processors
from ctplab.decoding.steps import tokens as tokens_of
from ctplab.models import Tokenizer
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import Concatenated, compiled, expand
from ctplab.prompts.ways import ways

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
    start: str = "auto",
) -> list[Answer]:
    """Continue every text, up to ``stop`` if given. Raises InputError as :func:`ctplab.decoding.inputs.prepare` does.

    ``raw``: no chat template. ``start``: what stands between prefix and text, one for all arms (``text/reading.py``).

    Texts are answered together. They take turns only if padding would push the prefix out of an attention window.
    """
    found = ways(arm.model)
    if not (found.cached and found.padded) or isinstance(compiled(arm), Concatenated):
        singles = [prepare(arm, tokenizer, [text], max_new_tokens, raw=raw, start=start) for text in texts]
        ends = answer_ends(arm.model, tokenizer, raw)
        return [_alone(arm, tokenizer, single, max_new_tokens, sampler, stop, ends) for single in singles]
    batch = prepare(arm, tokenizer, texts, max_new_tokens, raw=raw, start=start)
    mask = behind_prefix(batch.mask, arm.prefix.k)
    if crowded_window(arm, mask, max_new_tokens):
        one_by_one: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop": stop}
        one_by_one |= {"raw": raw, "start": start}
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


def _alone(
    arm: Arm, tokenizer: Tokenizer, batch: Batch, most: int, sampler: Sampler, stop: str | None, ends: list[int]
) -> Answer:
    """One answer by the loop of ``steps``: for models that ``ways`` does not trust with padding or with their cache."""
    began, said, text = time.perf_counter(), [], ""
    for token in tokens_of(arm, batch, sampler, most):
        if token in ends:
            break
        said.append(token)
        text = tokenizer.decode(said, skip_special_tokens=True)
        if stop is not None and stop in text:
            break
    return Answer(text if stop is None else text.split(stop)[0], len(said), time.perf_counter() - began)
