"""What a prompt costs in time: to the first token, and a token after that (Figure 5 of arXiv 2305.11186).

Two ways to attach k rows: ``concatenated`` puts them in front of the text's embeddings in every request; ``compiled``
starts from their keys and values, computed once beforehand. After the first token both do the same work, with k more
keys to attend to. Which rows they are does not matter for time, so random vocabulary rows are used. Dense and packed
models are arms like any other.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import check_context, embed, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import KV, compile_rows, expand
from ctplab.prompts.prefix import random_rows


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the repeats."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyPoint:
    """One measured setting."""

    arm: str
    attached: str
    """``concatenated``, ``compiled``, or ``none`` for k = 0."""
    k: int
    batch: int
    length: int
    """Text tokens before the first new one."""
    new_tokens: int
    first_token_ms: Spread
    tokens_per_second: Spread
    """New tokens after the first, over the whole batch."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``."""
        spreads = {key: Spread(**data[key]) for key in ("first_token_ms", "tokens_per_second")}
        return cls(**{**data, **spreads})


def spread(values: list[float]) -> Spread:
    """Median and quartiles; all three alike for a single value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def timed_greedy(
    model: Model, ids: Tensor, new_tokens: int, *, kv: KV | None = None, rows: Tensor | None = None
) -> tuple[Tensor, float, float]:
    """Greedy decoding of ``ids`` (B, T, no padding) behind a compiled (``kv``) or a concatenated (``rows``) prefix.

    Returns the new ids (B, new_tokens), seconds to the first of them, and seconds for the others.
    """
    device = ids.device
    began = _now(device)
    if rows is not None:
        joined = torch.cat([rows.to(embeddings(model).dtype).expand(len(ids), -1, -1), embed(model, ids)], 1)
        out = model(inputs_embeds=joined, use_cache=True, logits_to_keep=1)
        width = joined.shape[1]
    else:
        cache = expand(model, kv or [], len(ids))
        width = ids.shape[1] + (kv[0][0].shape[2] if kv else 0)
        out = model(
            input_ids=ids, attention_mask=ids.new_ones(len(ids), width), past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
    new = [out.logits[:, -1].argmax(-1, keepdim=True)]
    first = _now(device)
    for step in range(1, new_tokens):
        mask = ids.new_ones(len(ids), width + step)
        out = model(input_ids=new[-1], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
        new.append(out.logits[:, -1].argmax(-1, keepdim=True))
    return torch.cat(new, 1), first - began, _now(device) - first


def latency(
    arms: Arm | Sequence[Arm],
    *,
    tokens: Sequence[int] = (0, 25, 50, 75, 100),
    batch: int = 1,
    length: int = 128,
    new_tokens: int = 16,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> list[LatencyPoint]:
    """Time every arm's model at every k, concatenated and compiled.

    Rounds go over all settings in turn, so that a machine that slows down slows all of them; the first round warms
    up and is not counted. Raises InputError where k + text + new tokens do not fit, and for senseless settings.
    """
    arms = [arms] if isinstance(arms, Arm) else list(arms)
    if min(batch, length, repeats) < 1 or new_tokens < 2 or not tokens or min(tokens) < 0:
        raise InputError("latency needs batch, length and repeats of at least 1, 2 new tokens and k of at least 0")
    settings = []
    for arm in arms:
        device = embeddings(arm.model).device
        vocabulary = len(embeddings(arm.model))
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(vocabulary, (batch, length), generator=generator).to(device)
        for k in dict.fromkeys(tokens):
            check_context(arm.model, k, length + new_tokens)
            rows = random_rows(arm.model, k, seed).rows.to(device)
            with torch.no_grad():
                kv = compile_rows(arm.model, rows.to(embeddings(arm.model).dtype))
            ways = {"concatenated": {"rows": rows}, "compiled": {"kv": kv}} if k else {"none": {}}
            settings += [(arm, ids, k, attached, prefix) for attached, prefix in ways.items()]
    times: list[list[tuple[float, float]]] = [[] for _ in settings]
    rounds = [(turn, place) for turn in range(repeats + 1) for place in range(len(settings))]
    for turn, place in progress(rounds, total=len(rounds), label="latency"):
        arm, ids, _, _, prefix = settings[place]
        _, first, rest = timed_greedy(arm.model, ids, new_tokens, **prefix)
        if turn:
            times[place].append((first, rest))
    return [
        LatencyPoint(
            arm.name, attached, k, batch, length, new_tokens,
            spread([1000 * first for first, _ in measured]),
            spread([batch * (new_tokens - 1) / rest for _, rest in measured]),
        )
        for (arm, _, k, attached, _), measured in zip(settings, times, strict=True)
    ]  # fmt: skip
