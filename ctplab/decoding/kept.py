"""Recorded steps, kept with their model for later answers.

A graph reads memory and knows nothing of tensors. So a recording is right as long as every tensor that it read is still
there and was not written to; one that is in use holds them. Nothing here keeps a model alive.
"""

from dataclasses import dataclass, field
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ctplab.compression.linear import read_by_kernels
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import Seen, see, unchanged
from ctplab.prompts.attention import NAME as SWITCHED
from ctplab.recording import Recording

SHORTEST = 64  # places of a fixed cache
SHARE, MOST = 64, 4
"""For one model: at most four recordings, of at most a 64th of the card's memory together."""


def places(needed: int, limit: int | None) -> int:
    """The length of a fixed cache: ``needed`` rounded up by a quarter at most, so that answers share recordings."""
    step = 2 ** (max(needed, SHORTEST).bit_length() - 3)
    found = -(-max(needed, SHORTEST) // step) * step
    return found if limit is None else max(needed, min(found, limit))


@dataclass(eq=False)
class Recorded:
    """A step that was recorded, and what it was recorded from."""

    step: Any  # FixedStep
    recording: Recording[Tensor]
    state: str
    seen: Seen | None
    held: list[Tensor]
    """What it reads, while it is in use: if the model is moved meanwhile, it goes on from the old tensors."""
    tried: int = field(default=0)
    """How often it has given the logits of the growing cache."""

    @classmethod
    def of(cls, model: Model, step: Any) -> "Recorded":
        """Record ``step``, which stands behind a text. Raises whatever recording raises."""
        run = lambda: step.run(model)  # noqa: E731
        recording = Recording(run, step.ids.device, warm_up=0)  # the run that is watched compiles what is new
        now = _read_by(model)
        return cls(step, recording, _state(model), see(now), now)

    @property
    def bytes(self) -> int:
        """Bytes of its cache and of what it computes."""
        return self.step.bytes + self.recording.bytes

    def __call__(self, tokens: Tensor, place: int) -> Tensor:
        """The logits (B, V) behind ``tokens`` (B, 1) at this place, until the next call."""
        self.step.put(tokens, place)
        return self.recording.replay()


_lock = RLock()  # an answer that is dropped gives its recording back wherever Python collects it
_kept: WeakKeyDictionary[Model, list[Recorded]] = WeakKeyDictionary()
_refused: WeakKeyDictionary[Model, tuple[str, str]] = WeakKeyDictionary()


def take(model: Model, batch: int, needed: int) -> Recorded | None:
    """A recording that fits, out of the store, so that no two answers share one; those gone wrong are forgotten."""
    now = _read_by(model)
    with _lock:
        kept = [one for one in _kept.pop(model, []) if one.state == _state(model) and unchanged(one.seen, now)]
        long = range(needed, 2 * places(needed, None) + 1)
        fits = [one for one in kept if one.step.batch == batch and one.step.length in long]
        found = min(fits, key=lambda one: one.step.length, default=None)
        _kept[model] = [one for one in kept if one is not found]
    if found is not None:
        found.held = now
    return found


def put_back(model: Model, used: Recorded) -> None:
    """Keep it, if there is room; the oldest make way."""
    used.held = []
    if used.seen is None:  # made under inference mode: nobody could tell later whether it is still right
        return
    room = _room(embeddings(model).device)
    with _lock:
        kept = [*_kept.pop(model, []), used][-MOST:]
        while sum(one.bytes for one in kept) > room:
            del kept[0]
        _kept[model] = kept


def refuse(model: Model, why: str) -> None:
    """Remember that this model's step cannot be recorded."""
    with _lock:
        _refused[model] = _state(model), why


def refused(model: Model) -> str | None:
    """Why an attempt to record this model's step has failed, or None if none has."""
    with _lock:
        state, why = _refused.get(model, ("", None))
    return why if state == _state(model) else None


def recordings(model: Model) -> list[Recorded]:
    """Those that are kept and not in use."""
    with _lock:
        return list(_kept.get(model, []))


def _room(device: torch.device) -> int:
    """Bytes that kept recordings may take."""
    return torch.cuda.get_device_properties(device).total_memory // SHARE if device.type == "cuda" else 0


def _state(model: Model) -> str:
    """Changes if the model is moved, cast, or attends in another way."""
    table = embeddings(model)
    return f"{table.dtype} {table.device} {str(model.config._attn_implementation).replace(SWITCHED, 'sdpa')}"


def _read_by(model: Model) -> list[Tensor]:
    """Every tensor that a pass through the model reads, whether or not the model knows of it."""
    plain = [x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor)]
    return [*model.parameters(), *model.buffers(), *plain, *read_by_kernels(model)]
