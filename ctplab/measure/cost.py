"""What an arm costs beyond the compressed model: bytes to keep, positions of the context, and time.

Bytes are counted in half precision, in which compressed folders keep their values. Rows of the vocabulary cost the four
bytes of their token's number each, because the model has them already.

Time is measured against the full model with nothing in front. Both run from dense weights here, so the compressed model
takes as long, and the difference to its own line shows how far the clock can be trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ctplab.decoding.inputs import Batch
from ctplab.errors import InputError
from ctplab.measure.latency import Quartiles, quartiles, timed
from ctplab.models import Model
from ctplab.models.anatomy import check_text, embed, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import AnyPrefix, Prefix

HALF = 2
"""Bytes of a learned number."""
TOKEN = 4
"""Bytes of a token's number."""


@dataclass(frozen=True)
class Cost:
    """What an arm costs beyond the compressed model with nothing in front."""

    bytes: int
    positions: int
    """Rows of the context that it takes in every input."""
    read_ms: Quartiles | None = None
    """Further milliseconds for every token of text that is read; None if nobody measured."""
    write_ms: Quartiles | None = None
    """Further milliseconds for every token that is written after the first."""

    @property
    def nothing(self) -> bool:
        """Whether it takes neither bytes nor positions: its time is then the compressed model's."""
        return self.bytes == 0 and self.positions == 0


def prefix_bytes(model: Model, rows: AnyPrefix) -> int:
    """Bytes of a prefix in front of ``model``: of the tokens' numbers if its rows are the vocabulary's own."""
    if isinstance(rows, Prefix) and rows.ids is not None and len(rows.ids) == rows.k:
        own = embed(model, torch.tensor(rows.ids, dtype=torch.long)).detach().float().cpu()
        if torch.equal(own, rows.rows.float()):
            return TOKEN * rows.k
    return HALF * sum(tensor.numel() for tensor in prefix.tensors(rows))


def costs(arms: Sequence[Arm], more: Mapping[str, int] | None = None) -> dict[str, Cost]:
    """Bytes and positions of each arm. ``more``: bytes that an arm's model has beyond the compressed one, by name."""
    extra = more or {}
    return {arm.name: Cost(extra.get(arm.name, 0) + prefix_bytes(arm.model, arm.prefix), arm.prefix.k) for arm in arms}


def with_times(
    found: Mapping[str, Cost],
    arms: Sequence[Arm],
    full: Arm,
    *,
    length: int = 128,
    new_tokens: int = 16,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Cost]:
    """The costs of these arms with their times, each as the median and quartiles over rounds.

    Each round times ``full`` and then every arm behind its compiled prefix, and takes differences within the round.
    The first round warms up and is not counted. Raises InputError for senseless settings or if an arm has no room.
    """
    if min(length, repeats) < 1 or new_tokens < 2:
        raise InputError("times need a length and repeats of at least 1, and 2 new tokens")
    for arm in arms:
        check_text(arm.model, max(each.prefix.k for each in arms), length, new_tokens)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(embeddings(full.model)), (1, length), generator=generator)
    ids = ids.to(embeddings(full.model).device)
    batch = Batch(ids, torch.ones_like(ids))
    further: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for turn in progress(range(repeats + 1), total=repeats + 1, label="times"):
        first, rest = timed(full, batch, new_tokens)
        for arm in arms:
            own = timed(arm, batch, new_tokens)
            if turn:
                further[arm.name].append((own[0] - first, own[1] - rest))
    made = dict(found)
    for name, differences in further.items():
        read = quartiles([1000 * first / length for first, _ in differences])
        write = quartiles([1000 * rest / (new_tokens - 1) for _, rest in differences])
        made[name] = replace(found[name], read_ms=read, write_ms=write)
    return made
