"""What a prompt costs in time: to the first token, and a token after that (Figure 5 of arXiv 2305.11186).

There are two ways to attach k rows. ``concatenated`` puts them in front of the text's embeddings in every request.
``compiled`` starts from their keys and values, which were computed once beforehand. After the first token both do the
same work, with k more keys to attend to. Time does not depend on which rows they are, so random rows of the vocabulary
are taken. Dense and packed models are arms like any other.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import Batch
from ctplab.errors import InputError
from ctplab.models.anatomy import check_text, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import Concatenated, compiled
from ctplab.prompts.prefix import random_rows


@dataclass(frozen=True)
class Quartiles:
    """What half of the repeats lie below, and what a quarter and three quarters do."""

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
    first_token_ms: Quartiles
    tokens_per_second: Quartiles
    """New tokens after the first, over the whole batch."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``."""
        measured = {key: Quartiles(**data[key]) for key in ("first_token_ms", "tokens_per_second")}
        return cls(**{**data, **measured})


def quartiles(values: list[float]) -> Quartiles:
    """Median and quartiles; all three are alike for a single value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, low, high)


def _now(device: torch.device) -> float:
    """Seconds on the clock, as soon as the device has done all that it was given."""
    if device.type == "cuda":  # to wait for the whole card would break another thread's recording (``recording``)
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def timed(arm: Arm, batch: Batch, new_tokens: int, attached: str = "compiled") -> tuple[float, float]:
    """Seconds to the first new token of every row, and seconds from there to the last."""
    readings: list[float] = []

    def read(tokens: int) -> None:  # at no other token: a reading waits for the device
        if tokens in (0, 1, new_tokens):
            readings.append(_now(batch.ids.device))

    greedy(arm, batch, new_tokens, concatenate=attached == "concatenated", on_tokens=read)
    began, first, last = readings
    return first - began, last - first


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

    Each round times all settings in turn, so a machine that slows down slows all of them. The first round warms up and
    is not counted. Raises InputError for senseless settings, and if k rows, text and new tokens do not fit.
    """
    arms = [arms] if isinstance(arms, Arm) else list(arms)
    if min(batch, length, repeats) < 1 or new_tokens < 2 or not tokens or min(tokens) < 0:
        raise InputError("latency needs batch, length and repeats of at least 1, 2 new tokens and k of at least 0")
    settings: list[tuple[Arm, Batch, str]] = []
    for arm in arms:
        table = embeddings(arm.model)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(table), (batch, length), generator=generator).to(table.device)
        check_text(arm.model, max(tokens), length, new_tokens)
        for k in dict.fromkeys(tokens):
            prompted = Arm(arm.name, arm.model, random_rows(arm.model, k, seed))
            kv = compiled(prompted)  # refuses what does not fit before the first round
            both = ("concatenated",) if isinstance(kv, Concatenated) else ("concatenated", "compiled")
            ways = both if k else ("none",)
            settings += [(prompted, Batch(ids, torch.ones_like(ids)), attached) for attached in ways]
    times: list[list[tuple[float, float]]] = [[] for _ in settings]
    rounds = [(turn, place) for turn in range(repeats + 1) for place in range(len(settings))]
    for turn, place in progress(rounds, total=len(rounds), label="latency"):
        arm, texts, attached = settings[place]
        found = timed(arm, texts, new_tokens, attached)
        if turn:
            times[place].append(found)
    return [
        LatencyPoint(
            arm.name, attached, arm.prefix.k, batch, length, new_tokens,
            quartiles([1000 * first for first, _ in measured]),
            quartiles([batch * (new_tokens - 1) / rest for _, rest in measured]),
        )
        for (arm, _, attached), measured in zip(settings, times, strict=True)
    ]  # fmt: skip
