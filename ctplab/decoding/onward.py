"""What comes after the first pass over a text, a token of each row at a time: kernel by kernel, or recorded on a card.

A packed layer's launch takes the host longer than the card takes to multiply, and a dense one's about as long. So on a
card the pass is recorded (``recording``) over a cache of fixed length (``fixed``), and replayed in one launch.

A recording is tried before it is used: three tokens are read in both ways, and the logits must agree as ``ways`` asks
for. Until then every token comes from the growing cache. Recordings are kept with the model for later answers, as long
as no tensor that they read was replaced, moved or written to, and as long as their caches are small beside the card's
memory. An answer takes the recording that it uses out of the store, so that no two answers share one.

Whatever cannot be recorded is read as on a CPU; :func:`obstacle` says why.
"""

from dataclasses import dataclass, field
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ctplab.compression.linear import read_by_kernels
from ctplab.models import Model
from ctplab.models.anatomy import context_length, embeddings
from ctplab.models.fingerprints import Seen, see, unchanged
from ctplab.prompts.attention import NAME as SWITCHED
from ctplab.prompts.ways import HALF_NOISE, NOISE, last_only, takes
from ctplab.recording import Recording

LEAST = 16
"""The fewest further tokens for which a step is recorded: that costs the time of about five passes. A kept recording
serves any number."""
TRIED = 3  # tokens that are read in both ways
SHORTEST = 64  # places of a fixed cache
SHARE, MOST = 64, 4  # kept for a model: caches of at most a 64th of the card's memory together, and at most four
WINDOWS = ("sliding_window", "attention_window", "window_size", "local_attention", "attention_chunk_size")
"""How configurations call a bound on how far a token sees back, whether or not the cache knows of it."""


def obstacle(model: Model, cache: Any, length: int) -> str | None:
    """Why passes behind this filled ``cache`` cannot be recorded with ``length`` places, or None."""
    device = embeddings(model).device
    if why := _no_card(device):
        return why
    if len({t.device for t in (*model.parameters(), *model.buffers())}) > 1:
        return "the model is spread over several devices"
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return "inference mode and autocast hold for a block of code, and a recording outlives it"
    if model.training:
        return "the model is in training mode"
    if not takes(model, "position_ids"):
        return "the model takes no position_ids"
    if hasattr(model, "peft_config") or getattr(model, "hf_quantizer", None) is not None:
        return "adapters and other libraries' packed weights change without a trace"
    if any(_is_watched(module) for module in model.modules()):
        return "hooks and replaced forward passes are not called by a recording"
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds, layers = (DynamicLayer, DynamicSlidingWindowLayer), getattr(cache, "layers", [])
    if type(cache) is not DynamicCache or not all(type(layer) in kinds and layer.is_initialized for layer in layers):
        return "the model's cache is not one of keys and values in every layer"
    bounds = [getattr(model.config.get_text_config(), name, None) for name in WINDOWS]
    bounds += [getattr(layer, "sliding_window", None) for layer in layers]
    if any(isinstance(bound, int) and 0 < bound < length for bound in bounds):
        return "the model's attention window is shorter than prefix, text and answer"
    return None


def _no_card(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "there is no card"
    if torch.cuda.current_stream(device) != torch.cuda.default_stream(device):  # answers share recordings, in its order
        return "the caller uses a stream of its own"
    return None


def _is_watched(module: nn.Module) -> bool:
    inside = vars(module)
    hooks = inside["_forward_hooks"] or inside["_forward_pre_hooks"]
    return bool(hooks) or "forward" in inside or inside.get("_compiled_call_impl") is not None


def places(needed: int, limit: int | None) -> int:
    """The length of the cache for so many places: rounded up by a quarter at most, so that few lengths are recorded."""
    step = 2 ** (max(needed, SHORTEST).bit_length() - 3)
    found = -(-max(needed, SHORTEST) // step) * step
    return found if limit is None else max(needed, min(found, limit))


@dataclass(eq=False)
class _Recorded:
    """A recorded step, how often it has been tried, and what it was recorded from."""

    step: Any  # FixedStep
    recording: Recording[Tensor]
    state: str
    seen: Seen | None
    tried: int = 0
    held: list[Tensor] = field(default_factory=list)
    """What it reads, while it is in use: if the model is moved meanwhile, it goes on from the old tensors."""

    def __call__(self, tokens: Tensor, place: int) -> Tensor:
        self.step.put(tokens, place)
        return self.recording.replay()


_lock = RLock()
_kept: WeakKeyDictionary[Model, list[_Recorded]] = WeakKeyDictionary()
_refused: WeakKeyDictionary[Model, tuple[str, str]] = WeakKeyDictionary()


def refused(model: Model) -> str | None:
    """Why an attempt to record this model's step has failed, or None if none has."""
    with _lock:
        state, why = _refused.get(model, ("", None))
    return why if state == _state(model) else None


def _state(model: Model) -> str:
    """Changes if the model is moved, cast, or attends in another way."""
    table = embeddings(model)
    return f"{table.dtype} {table.device} {str(model.config._attn_implementation).replace(SWITCHED, 'sdpa')}"


def _read_by(model: Model) -> list[Tensor]:
    """Every tensor that a pass through the model reads, whether or not the model knows of it."""
    plain = [x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor)]
    return [*model.parameters(), *model.buffers(), *plain, *read_by_kernels(model)]


def _take(model: Model, batch: int, needed: int) -> _Recorded | None:
    """Take a kept recording that fits out of the store; forget those that have become wrong."""
    now = _read_by(model)
    with _lock:
        kept = [one for one in _kept.pop(model, []) if one.state == _state(model) and unchanged(one.seen, now)]
        fits = [
            one for one in kept if one.step.batch == batch and needed <= one.step.length <= 2 * places(needed, None)
        ]
        found = min(fits, key=lambda one: one.step.length, default=None)
        _kept[model] = [one for one in kept if one is not found]
    if found is not None:
        found.held = now
    return found


def _put_back(model: Model, used: _Recorded) -> None:
    used.held = []
    if used.seen is None:  # made under inference mode: nobody could tell later whether it is still right
        return
    room = _room(embeddings(model).device)
    with _lock:
        kept = [*_kept.pop(model, []), used][-MOST:]
        while sum(one.step.bytes for one in kept) > room:
            del kept[0]
        _kept[model] = kept


def _room(device: torch.device) -> int:
    """Bytes that the caches of kept recordings may take."""
    return torch.cuda.mem_get_info(device)[1] // SHARE if device.type == "cuda" else 0


class Onward:
    """Tokens (B, 1) that were chosen last -> the logits (B, V) of the next ones, which hold until the next call.

    :meth:`close` it after the last call, so that the recording can serve others.
    """

    def __init__(self, model: Model, cache: Any, mask: Tensor, width: int, positions: Tensor | None = None) -> None:
        """``cache`` holds ``width`` places of ``mask`` (B, m), 0 for padding; m is the most that there will be.

        ``positions`` (B, m) are handed to the model, if given. The caller must let go of ``cache``.
        """
        self._model, self._mask, self._positions, self._place = model, mask, positions, width
        self._cache: Any = cache  # None once a recording is trusted
        self._one = last_only(model)
        self._recorded: _Recorded | None = None
        self._asked = False

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        if not self._asked:
            self._asked, self._recorded = True, self._begin(tokens)
        place, self._place = self._place, self._place + 1
        recorded = self._recorded
        if recorded is None:
            return self._grow(tokens, place)
        if recorded.tried >= TRIED:
            self._cache = None
            return recorded(tokens, place)
        wanted, found = self._grow(tokens, place), recorded(tokens, place)
        if _same(found, wanted):
            recorded.tried += 1
        else:
            self._recorded = None
            self._refuse("a replay gives other logits than the model")
        return wanted

    def _grow(self, tokens: Tensor, place: int) -> Tensor:
        more: dict[str, Any] = {"attention_mask": self._mask[:, : place + 1], "past_key_values": self._cache}
        if self._positions is not None:
            more["position_ids"] = self._positions[:, place : place + 1]
        out = self._model(input_ids=tokens, use_cache=True, **more, **self._one)
        self._cache = out.past_key_values
        return out.logits[:, -1]

    def _begin(self, tokens: Tensor) -> _Recorded | None:
        """A recording that stands where the growing cache stands, or None."""
        model, needed = self._model, self._mask.shape[1]
        length = places(needed, context_length(model))
        try:
            if obstacle(model, self._cache, length) or refused(model):
                return None
            found = _take(model, len(tokens), needed)
            if found is None and needed - self._place < LEAST:
                return None
            found = found or self._record(tokens, length)
            found.step.load(self._cache, self._mask[:, : self._place])
            return found
        except torch.OutOfMemoryError:
            return None
        except Exception as error:  # a model can fail here in any way: then it is read as on a CPU
            self._refuse(f"recording failed: {(str(error).splitlines() or [type(error).__name__])[0][:120]}")
            return None

    def _record(self, tokens: Tensor, length: int) -> _Recorded:
        from ctplab.decoding.fixed import FixedStep

        model, step = self._model, FixedStep(self._cache, length)
        step.load(self._cache, self._mask[:, : self._place])
        step.put(tokens, self._place)
        recording = Recording(
            lambda: step.run(model), tokens.device, warm_up=0
        )  # its kernels have run in passes before
        now = _read_by(model)
        return _Recorded(step, recording, _state(model), see(now), held=now)

    def _refuse(self, why: str) -> None:
        with _lock:
            _refused[self._model] = _state(self._model), why

    def close(self) -> None:
        """Keep the recording for later answers."""
        if self._recorded is not None:
            _put_back(self._model, self._recorded)
        self._recorded = self._cache = None


def _same(found: Tensor, wanted: Tensor) -> bool:
    most = NOISE.get(wanted.dtype, HALF_NOISE) * wanted.abs().max()
    return bool(((found - wanted).abs() <= most).all())
