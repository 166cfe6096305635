"""Generation behind a compiled prefix: batches, streams, and a lean greedy loop for thousands of questions."""

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Tokenizer, check_context, embeddings
from ctplab.prompts.kv import Arm, compile_prefix, expand


@dataclass(frozen=True)
class Answer:
    """One generated continuation."""

    text: str
    n_tokens: int
    seconds: float
    """Wall time of the batch it came from."""


def _encode(arm: Arm, tokenizer: Tokenizer, texts: list[str]) -> dict[str, Tensor]:
    """Left-padded ids and mask. Behind a prefix a text starts as in training: without a start token of its own."""
    if any(not text.strip() for text in texts):
        raise InputError("the text is empty; give at least one word")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    rows = [tokenizer(text, add_special_tokens=arm.prefix.k == 0)["input_ids"] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    device = embeddings(arm.model).device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _settings(arm: Arm, tokenizer: Tokenizer, inputs: dict[str, Tensor], max_new_tokens: int, stop: str | None) -> dict:
    check_context(arm.model, arm.prefix.k, inputs["input_ids"].shape[1] + max_new_tokens)
    with torch.no_grad():
        kv = compile_prefix(arm.model, arm.prefix)
    batch = len(inputs["input_ids"])
    settings: dict[str, Any] = dict(inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id or 0)
    if stop is not None:
        settings |= {"stop_strings": [stop], "tokenizer": tokenizer}
    cache = expand(arm.model, kv, batch)
    if cache is not None:
        prefix = inputs["attention_mask"].new_ones(batch, arm.prefix.k)
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
    temperature: float = 0.0,
    seed: int = 0,
    stop: str | None = None,
) -> list[Answer]:
    """Continue every text, greedily or at a temperature. Raises InputError for empty texts and full contexts."""
    inputs = _encode(arm, tokenizer, texts)
    settings = _settings(arm, tokenizer, inputs, max_new_tokens, stop)
    sample = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    began = time.perf_counter()
    out = arm.model.generate(**settings, **sample)
    seconds = time.perf_counter() - began
    answers = []
    for row in out[:, inputs["input_ids"].shape[1] :]:
        text = tokenizer.decode(row, skip_special_tokens=True)
        kept = text.split(stop)[0] if stop else text
        answers.append(Answer(kept, int((row != (tokenizer.pad_token_id or 0)).sum()), seconds))
    return answers


def stream(arm: Arm, tokenizer: Tokenizer, text: str, *, max_new_tokens: int = 64) -> Iterator[str]:
    """Pieces of one greedy answer as they are made. Closing the iterator stops the model at its next token."""
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    stop = Event()
    failure: list[Exception] = []

    class Stopped(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), stop.is_set(), device=input_ids.device)

    settings = _settings(arm, tokenizer, _encode(arm, tokenizer, [text]), max_new_tokens, None)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    settings |= {"streamer": streamer, "do_sample": False, "stopping_criteria": StoppingCriteriaList([Stopped()])}

    def work() -> None:
        try:
            arm.model.generate(**settings)
        except Exception as error:  # handed to the reader: a thread that dies silently would leave it waiting
            failure.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        stop.set()
        worker.join()
    if failure:
        raise failure[0]


@torch.no_grad()
def greedy(arm: Arm, ids: Tensor, mask: Tensor, steps: int, stop_id: int | None = None) -> Tensor:
    """A lean greedy loop over left-padded ``ids`` (B, n): (B, steps) new ids. For scoring thousands of questions.

    Tested to give what ``generate`` gives. Positions come from the mask, as ``generate`` derives them.
    """
    model, k = arm.model, arm.prefix.k
    kv = compile_prefix(model, arm.prefix)
    cache = expand(model, kv, len(ids))
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    full = torch.cat([mask.new_ones(len(ids), k), mask], 1)
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
