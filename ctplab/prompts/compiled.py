"""A prefix is compiled once per model: the keys and values are kept while model and prefix live.

They are made again as soon as a tensor of either was replaced, moved or written to, so nobody has to tell. Two
things leave no trace that could be checked, so they are not kept at all: models with PEFT adapters, which can be
switched without touching a tensor, and tensors made under ``torch.inference_mode``. What this cannot see is a write
through ``tensor.data``, which hides itself from torch as well; nothing in ctplab does that.
"""

from threading import Lock
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ctplab.models import Model
from ctplab.prompts.kv import KV, Arm, compile_prefix
from ctplab.prompts.prefix import AnyPrefix, tensors

Seen = list[tuple[ref[Tensor], int, int]]
"""Every tensor that the keys and values depend on: itself, its address, how often it was written to."""

_lock = Lock()
_kept: WeakKeyDictionary[Model, WeakKeyDictionary[AnyPrefix, tuple[Seen, KV]]] = WeakKeyDictionary()


@torch.no_grad()
def compiled(arm: Arm) -> KV:
    """Keys and values of the arm's prefix, computed at the first call. Raises InputError where it does not fit."""
    found = [*arm.model.parameters(), *arm.model.buffers(), *tensors(arm.prefix)]
    if hasattr(arm.model, "peft_config") or any(t.is_inference() for t in found):
        return compile_prefix(arm.model, arm.prefix)
    with _lock:  # four answers that start together compile once
        of_model = _kept.setdefault(arm.model, WeakKeyDictionary())
        seen, kv = of_model.get(arm.prefix, ([], []))
        if not _unchanged(seen, found):
            kv = compile_prefix(arm.model, arm.prefix)
            of_model[arm.prefix] = [(ref(t), t.data_ptr(), t._version) for t in found], kv
        return kv


def _unchanged(seen: Seen, found: list[Tensor]) -> bool:
    return len(seen) == len(found) and all(
        kept() is t and address == t.data_ptr() and version == t._version
        for (kept, address, version), t in zip(seen, found, strict=True)
    )
