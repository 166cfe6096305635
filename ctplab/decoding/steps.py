"""One answer, a token at a time, in the caller's own thread.

Nothing runs between two pieces. So an answer that nobody asks to go on has stopped, several answers can take turns,
and each can be timed by itself.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch

from ctplab.decoding.inputs import Batch, answer_ends, behind_prefix, prepare
from ctplab.decoding.onward import Onward
from ctplab.decoding.sampler import GREEDY, Sampler, processors
from ctplab.models import Tokenizer
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import KV, Concatenated, compiled, expand
from ctplab.prompts.head import logits_after
from ctplab.prompts.ways import last_only, ways


def stream(
    arm: Arm,
    tokenizer: Tokenizer,
    text: str,
    *,
    max_new_tokens: int = 64,
    sampler: Sampler = GREEDY,
    stop: str | None = None,
    raw: bool = False,
    start: str = "auto",
    on_token: Callable[[], None] | None = None,
) -> Generator[str, None, None]:
    """Pieces of one answer, one for every token; joined, they are what ``generate`` gives for this text alone.

    A piece is empty while a character is incomplete, and while ``stop`` may have begun; if it stays so at the end, one
    more piece shows it. ``on_token`` is called after every token, an end token included (to count, to time). Closing
    the iterator stops at once. Bad input raises InputError here, not at the first piece.
    """
    batch = prepare(arm, tokenizer, [text], max_new_tokens, raw=raw, start=start)
    found = tokens(arm, batch, sampler, max_new_tokens)
    pieces = _pieces(tokenizer, found, answer_ends(arm.model, tokenizer, raw), on_token)
    return pieces if stop is None else until(pieces, stop)


def tokens(arm: Arm, batch: Batch, sampler: Sampler, most: int) -> Iterator[int]:
    """``most`` new tokens of one text, one at a time. Raises InputError here if prefix and model do not fit."""
    kv = compiled(arm)
    if isinstance(kv, Concatenated) or not ways(arm.model).cached:
        return _read_again(arm, batch, kv, sampler, most)
    return _from_cache(arm, batch, expand(arm.model, kv, 1), sampler, most)


def _from_cache(arm: Arm, batch: Batch, cache: object, sampler: Sampler, most: int) -> Iterator[int]:
    """One forward pass for each token."""
    ids, width = batch.ids, arm.prefix.k + batch.ids.shape[1]
    mask = behind_prefix(batch.mask, arm.prefix.k)
    mask = torch.cat([mask, mask.new_ones(1, most)], 1)
    choose, one = processors(sampler, batch.mask), last_only(arm.model)
    with torch.no_grad():
        first: dict[str, Any] = {"input_ids": ids, "attention_mask": mask[:, :width], "past_key_values": cache}
        out = arm.model(**first, use_cache=True, **one)
    logits = out.logits[:, -1]
    with closing(Onward(arm.model, out.past_key_values, mask, width)) as following:
        del out, cache, first
        for n in range(most):
            if n:
                logits = following(ids[:, -1:])
            with torch.no_grad():
                scores = choose(ids, logits.to(ids.device, torch.float32))
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
            yield int(ids[0, -1])


def _read_again(arm: Arm, batch: Batch, kv: KV, sampler: Sampler, most: int) -> Iterator[int]:
    """The same for models whose cache cannot be trusted with it: every token reads prefix and text again."""
    ids, choose = batch.ids, processors(sampler, batch.mask)
    for _ in range(most):
        with torch.no_grad():
            scores = choose(ids, logits_after(arm.model, kv, ids)[:, -1].to(ids.device, torch.float32))
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        yield int(ids[0, -1])


def _pieces(
    tokenizer: Tokenizer, tokens: Iterator[int], ends: list[int], on_token: Callable[[], None] | None
) -> Generator[str, None, None]:
    """What each token adds to the text, up to a token of ``ends``."""
    answer: list[int] = []
    text, shown = "", 0
    for token in tokens:
        if on_token is not None:
            on_token()
        if token in ends:
            break
        answer.append(token)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        whole = text.rstrip("\ufffd")  # so reads a character of several tokens, until its last one has come
        yield whole[shown:]
        shown = max(shown, len(whole))
    if text[shown:]:
        yield text[shown:]


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
        if held:
            yield held
