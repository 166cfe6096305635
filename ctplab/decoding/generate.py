"""Generation behind a compiled prefix: batches, streams, and a lean greedy loop for thousands of questions.

All of it runs through transformers' own ``generate`` (the lean loop is tested against it): the prefix is a cache that
is already full, the mask covers prefix and text, and the text's ids stay ids, so penalties see them.
"""

import inspect
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from ctplab.decoding.sampler import GREEDY, Sampler, processors
from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context, embeddings
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand


@dataclass(frozen=True)
class Answer:
    """One generated continuation."""

    text: str
    n_tokens: int
    seconds: float
    """Wall time of the batch it came from."""


def _pad(tokenizer: Tokenizer) -> int:
    """Any id will do where the mask is 0; the end token where there is no padding token."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _encode(arm: Arm, tokenizer: Tokenizer, texts: list[str]) -> dict[str, Tensor]:
    """Left-padded ids and mask. Behind a prefix a text starts as in training: without a start token of its own."""
    if not texts or any(not text.strip() for text in texts):
        raise InputError("the text is empty; give at least one word")
    rows = [tokenizer(text, add_special_tokens=arm.prefix.k == 0, verbose=False)["input_ids"] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([[_pad(tokenizer)] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    device = embeddings(arm.model).device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def generation_settings(
    arm: Arm, tokenizer: Tokenizer, texts: list[str], max_new_tokens: int, sampler: Sampler, stop: str | None
) -> dict[str, Any]:
    """Arguments of ``generate``. Raises InputError for empty texts and where prefix, text and answer do not fit."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    inputs = _encode(arm, tokenizer, texts)
    check_context(arm.model, arm.prefix.k, inputs["input_ids"].shape[1] + max_new_tokens)
    settings: dict[str, Any] = {
        **inputs,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": _pad(tokenizer),
        "do_sample": False,  # the sampler's own processors leave one token to choose
        "logits_processor": processors(sampler, inputs["attention_mask"]),
    }
    if stop is not None:
        settings |= {"stop_strings": [stop], "tokenizer": tokenizer}
    cache = expand(arm.model, compiled(arm), len(texts))
    if cache is not None:
        prefix = inputs["attention_mask"].new_ones(len(texts), arm.prefix.k)
        settings["attention_mask"] = torch.cat([prefix, inputs["attention_mask"]], 1)
        settings["past_key_values"] = cache
    return settings


@torch.no_grad()
def generate(
    arm: Arm,
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    max_new_tokens: int = 32,
    sampler: Sampler = GREEDY,
    stop: str | None = None,
) -> list[Answer]:
    """Continue every text, up to ``stop`` if given. Raises InputError for empty texts and full contexts."""
    settings = generation_settings(arm, tokenizer, texts, max_new_tokens, sampler, stop)
    if _window_with_padding(arm, settings["attention_mask"], max_new_tokens):
        one_by_one: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop": stop}
        return [generate(arm, tokenizer, [text], **one_by_one)[0] for text in texts]
    began = time.perf_counter()
    out = arm.model.generate(**settings)
    seconds = time.perf_counter() - began
    answers = []
    for row in out[:, settings["input_ids"].shape[1] :]:
        text = tokenizer.decode(row, skip_special_tokens=True)
        answers.append(Answer(text.split(stop)[0] if stop else text, _length(row, _pad(tokenizer)), seconds))
    return answers


def _window_with_padding(arm: Arm, full: Tensor, new: int) -> int | None:
    """The model's attention window, where padding between prefix and text would take up places in it; else None.

    Sliding windows count places in the cache, padding included: the prefix would slide out of sight too early.
    ``full``: mask (B, k + n) of prefix and texts.
    """
    from transformers import DynamicCache

    if arm.prefix.k == 0 or full.all():
        return None
    layers: list[Any] = DynamicCache(config=arm.model.config).layers
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    return min((window for window in windows if window < full.shape[1] + new), default=None)


def _length(row: Tensor, pad: int) -> int:
    """Tokens generated in ``row``, an end token not counted: what follows is padding."""
    kept = (row != pad).nonzero()
    return int(kept[-1]) + 1 if len(kept) else 0


def stream(
    arm: Arm,
    tokenizer: Tokenizer,
    text: str,
    *,
    max_new_tokens: int = 64,
    sampler: Sampler = GREEDY,
    stop: str | None = None,
    on_token: Callable[[], None] | None = None,
) -> Generator[str, None, None]:
    """Pieces of one answer as they are made; joined, they are what ``generate`` gives for this text alone.

    The model works in a thread of its own, which starts with the first piece asked for; several streams may run at
    once, also on one model. ``on_token`` is called in that thread after every token (to count, to time). Closing the
    iterator stops the model at its next token and returns when it has stopped. Bad input raises InputError here, not
    at the first piece.
    """
    settings = generation_settings(arm, tokenizer, [text], max_new_tokens, sampler, stop)
    pieces = _pieces(arm.model, tokenizer, settings, on_token)
    return pieces if stop is None else until(pieces, stop)


def _pieces(
    model: Model, tokenizer: Tokenizer, settings: dict[str, Any], on_token: Callable[[], None] | None
) -> Generator[str, None, None]:
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    closed = Event()
    failure: list[Exception] = []

    class Closed(StoppingCriteria):  # asked after every token
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            if on_token is not None:
                on_token()
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    settings |= {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([Closed()])}

    def work() -> None:
        try:
            model.generate(**settings)
        except Exception as error:  # handed to the reader: a thread that dies silently would leave it waiting
            failure.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        closed.set()
        worker.join()
    if failure:
        raise failure[0]


def until(pieces: Generator[str, None, None], stop: str) -> Generator[str, None, None]:
    """``pieces`` up to ``stop``, which may begin in one piece and end in the next; closes ``pieces`` then."""
    held = ""
    with closing(pieces):
        for piece in pieces:
            before, found, _ = (held + piece).partition(stop)
            if found:
                yield before
                return
            tail = next((n for n in range(len(stop) - 1, 0, -1) if before.endswith(stop[:n])), 0)  # may be its start
            yield before[: len(before) - tail]
            held = before[len(before) - tail :]
        yield held


@torch.no_grad()
def greedy(arm: Arm, ids: Tensor, mask: Tensor, steps: int, stop_id: int | None = None) -> Tensor:
    """A lean greedy loop over left-padded ``ids`` (B, n): (B, steps) new ids. For scoring thousands of questions.

    Tested to give what ``generate`` gives. Positions come from the mask, as ``generate`` derives them.
    """
    model, k = arm.model, arm.prefix.k
    cache = expand(model, compiled(arm), len(ids))
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    full = torch.cat([mask.new_ones(len(ids), k), mask], 1)
    if window := _window_with_padding(arm, full, steps):
        raise InputError(f"padding does not go with this model's attention window of {window}: use batches of one")
    new, current = [], ids
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(steps):
        positions = (full.cumsum(1) - 1).clamp(min=0)[:, -current.shape[1] :]
        more = {"position_ids": positions} if takes_positions else {}
        out = model(
            input_ids=current, attention_mask=full, past_key_values=cache, use_cache=True, logits_to_keep=1, **more
        )
        cache = out.past_key_values
        current = out.logits[:, -1].argmax(-1, keepdim=True)
        new.append(current)
        if stop_id is not None:
            done |= current[:, 0] == stop_id
            if done.all():
                break
        full = torch.cat([full, full.new_ones(len(ids), 1)], 1)
    return torch.cat(new, 1)
