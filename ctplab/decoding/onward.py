"""What comes after the first pass over a text, a token of each row at a time: kernel by kernel, or recorded on a card.

A packed layer's launch takes the host longer than the card takes to multiply, and a dense one's about as long. So on a
card the pass is recorded (``recording``) over a cache of fixed length (``fixed``), and replayed in one launch.

A recording is tried before it is used: three tokens are read in both ways, and the logits must agree as ``ways`` asks
for. Until then every token comes from the growing cache. Recordings serve later answers too (``kept``).

Whatever cannot be recorded is read as on a CPU; :func:`obstacle` says why.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ctplab.decoding.kept import Recorded, places, put_back, refuse, refused, take
from ctplab.models import Model
from ctplab.models.anatomy import context_length, embeddings
from ctplab.prompts.ways import HALF_NOISE, NOISE, last_only, takes
from ctplab.recording import told

LEAST = 12
"""The fewest further tokens for which a step is recorded: to record it and to try it takes the time of about five
passes. A kept recording serves any number."""
TRIED = 3  # tokens that are read in both ways
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
    """Whether anybody but transformers has a hook, which once asked for hidden states leaves some that do nothing."""
    inside = vars(module)
    hooks = (*inside["_forward_hooks"].values(), *inside["_forward_pre_hooks"].values())
    others = any(not getattr(hook, "__module__", "").startswith("transformers.utils.") for hook in hooks)
    return others or "forward" in inside or inside.get("_compiled_call_impl") is not None


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
        self._recorded: Recorded | None = None
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
            refuse(self._model, "a replay gives other logits than the model")
        return wanted

    def _grow(self, tokens: Tensor, place: int) -> Tensor:
        more: dict[str, Any] = {"attention_mask": self._mask[:, : place + 1], "past_key_values": self._cache}
        if self._positions is not None:
            more["position_ids"] = self._positions[:, place : place + 1]
        out = self._model(input_ids=tokens, use_cache=True, **more, **self._one)
        self._cache = out.past_key_values
        return out.logits[:, -1]

    def _begin(self, tokens: Tensor) -> Recorded | None:
        """A recording that stands where the growing cache stands, or None."""
        from ctplab.decoding.fixed import FixedStep

        model, needed = self._model, self._mask.shape[1]
        length = places(needed, context_length(model))
        try:
            if obstacle(model, self._cache, length) or refused(model):
                return None
            found = take(model, len(tokens), needed)
            if found is None and needed - self._place < LEAST:
                return None
            step = FixedStep(self._cache, length) if found is None else found.step
            step.load(self._cache, self._mask[:, : self._place])
            step.put(tokens, self._place)
            return found or Recorded.of(model, step)
        except torch.OutOfMemoryError:
            return None
        except Exception as error:  # a model can fail here in any way: then it is read as on a CPU
            refuse(model, told(error))
            return None

    def close(self) -> None:
        """Keep the recording for later answers."""
        if self._recorded is not None:
            put_back(self._model, self._recorded)
        self._recorded = self._cache = None


def _same(found: Tensor, wanted: Tensor) -> bool:
    most = NOISE.get(wanted.dtype, HALF_NOISE) * wanted.abs().max()
    return bool(((found - wanted).abs() <= most).all())
