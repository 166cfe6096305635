"""Greedy answers to a whole batch with little between two passes: for thousands of questions, and for clocks.

``generate`` of transformers does more there. The answers are the same.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from ctplab.decoding.inputs import Batch, behind_prefix, crowded_window, positions
from ctplab.decoding.onward import Onward
from ctplab.decoding.sampler import refuse_nan
from ctplab.errors import InputError
from ctplab.models.anatomy import check_text, embed, embeddings
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import KV, Concatenated, check_width, compiled, expand
from ctplab.prompts.head import logits_after
from ctplab.prompts.prefix import Prefix
from ctplab.prompts.ways import last_only, takes, ways


@torch.no_grad()
def greedy(
    arm: Arm,
    batch: Batch,
    new_tokens: int,
    *,
    ends: Sequence[int] = (),
    concatenate: bool = False,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """The answer to every row of ``batch``, the most likely token each time: (B, m) new ids.

    A row that has reached one of ``ends`` repeats it. m is ``new_tokens``, or less if all rows have ended before.

    The prefix is compiled: its keys and values are computed once for model and prefix, and kept. With ``concatenate``
    its rows stand in front of the texts' embeddings instead, and are read anew with them. Both give the same tokens.

    ``on_tokens`` is called with the number of tokens that each row has: with 0 as soon as the prefix is ready and
    before the first pass, and then after every pass. A device may still be at work on that pass: it is not waited for.

    Raises InputError if prefix, text and answer do not fit, if padding would push the prefix out of the model's
    attention window, if the prefix has no rows to concatenate, and if the model gives NaN.
    """
    model, k = arm.model, arm.prefix.k
    count, length, device = len(batch.ids), k + batch.ids.shape[1], batch.ids.device
    check_text(model, k, batch.ids.shape[1], new_tokens)
    mask = behind_prefix(batch.mask, k)
    if window := crowded_window(arm, mask, new_tokens):
        raise InputError(f"padding does not go with this model's attention window of {window}: use batches of one")
    found = ways(model)
    if not found.padded and not batch.mask.all():
        raise InputError("padding does not go with this model: use batches of one")
    rows = _rows(arm) if concatenate else None
    kv = compiled(arm) if rows is None else []
    on_tokens(0)
    if not found.cached:
        return _read_again(
            arm, kv if rows is None else Concatenated(rows[None]), batch.ids, new_tokens, ends, on_tokens
        )
    if isinstance(kv, Concatenated):
        rows, kv = kv.rows[0], []

    mask = torch.cat([mask, mask.new_ones(count, new_tokens)], 1)
    places = positions(mask) if takes(model, "position_ids") else None
    cache, start, one = expand(model, kv, count), k, last_only(model)
    current: dict[str, Any] = {"input_ids": batch.ids}
    if rows is not None:
        current = {"inputs_embeds": torch.cat([rows.expand(count, -1, -1), embed(model, batch.ids)], 1)}
        start = 0

    if places is not None:
        current["position_ids"] = places[:, start:length]
    out = model(**current, attention_mask=mask[:, :length], past_key_values=cache, use_cache=True, **one)
    logits, following = out.logits[:, -1], Onward(model, out.past_key_values, mask, length, places)
    del out, cache  # whatever goes on from there need not keep it

    last = torch.tensor(list(ends), device=device)
    done = torch.zeros(count, dtype=torch.bool, device=device)
    new: list[Tensor] = []
    total: Tensor = torch.zeros((), device=device)
    with closing(following):
        for n in range(1, new_tokens + 1):
            if n > 1:
                logits = following(new[-1][:, None])
            best = logits.to(device).max(-1)
            token, total = best.indices, total + best.values
            if new and ends:
                token = torch.where(done, new[-1], token)
            new.append(token)
            on_tokens(n)
            if ends:
                done |= torch.isin(token, last)
                if done.all():
                    break
    refuse_nan(total)  # once for all passes, so that none is waited for
    return torch.stack(new, 1)


def _read_again(
    arm: Arm, kv: KV, ids: Tensor, new_tokens: int, ends: Sequence[int], on_tokens: Callable[[int], None]
) -> Tensor:
    """The same for models whose own cache cannot be trusted: every pass reads prefix and texts (B, n) again."""
    length, last = ids.shape[1], torch.tensor(list(ends), device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for count in range(1, new_tokens + 1):
        token = refuse_nan(logits_after(arm.model, kv, ids)[:, -1].to(ids.device)).argmax(-1)
        token = torch.where(done, ids[:, -1], token)
        ids = torch.cat([ids, token[:, None]], 1)
        on_tokens(count)
        done |= torch.isin(token, last)
        if done.all():
            break
    return ids[:, length:]


def _rows(arm: Arm) -> Tensor:
    """The prefix's rows (k, d) as the model's embeddings are: device and type."""
    if not isinstance(arm.prefix, Prefix):
        raise InputError(f"the prefix {arm.prefix.name!r} is keys and values: it has no rows to concatenate")
    check_width(arm.model, arm.prefix)
    table = embeddings(arm.model)
    return arm.prefix.rows.to(table.device, table.dtype)
