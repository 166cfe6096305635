"""One answer a token at a time, in the caller's own thread.

Nothing runs between two pieces: several answers can be advanced in lockstep and timed one by one, and an answer that
is no longer asked for has stopped. (``generate.stream`` works ahead in a thread of its own: for one reader.)
"""

from collections.abc import Callable, Generator
from typing import Any

import torch

from ctplab.decoding.generate import generation_settings, until
from ctplab.decoding.sampler import GREEDY, Sampler
from ctplab.models import Model, Tokenizer
from ctplab.prompts.arms import Arm


def steps(
    arm: Arm,
    tokenizer: Tokenizer,
    text: str,
    *,
    max_new_tokens: int = 64,
    sampler: Sampler = GREEDY,
    stop: str | None = None,
    on_token: Callable[[], None] | None = None,
) -> Generator[str, None, None]:
    """Pieces of one answer, one for every token; joined, they are what ``generate`` gives for this text alone.

    A piece may be empty (half a character, or what may become ``stop``). Bad input raises InputError here, not at the
    first piece.
    """
    settings = generation_settings(arm, tokenizer, [text], max_new_tokens, sampler, None)
    pieces = _pieces(arm.model, tokenizer, settings, on_token)
    return pieces if stop is None else until(pieces, stop)


def _pieces(
    model: Model, tokenizer: Tokenizer, settings: dict[str, Any], on_token: Callable[[], None] | None
) -> Generator[str, None, None]:
    ids, mask, cache = settings["input_ids"], settings["attention_mask"], settings.get("past_key_values")
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    start, shown, current = ids.shape[1], "", ids
    for _ in range(settings["max_new_tokens"]):
        with torch.no_grad():
            out = model(input_ids=current, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores = settings["logits_processor"](ids, out.logits[:, -1].float())
        cache, current = out.past_key_values, scores.argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, current], 1), torch.cat([mask, mask.new_ones(1, 1)], 1)
        if on_token is not None:
            on_token()
        if int(current) in ends:
            return
        found = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        whole = found.removesuffix("\ufffd")  # half a character: shown with its other half
        yield whole[len(shown) :]
        shown = whole
