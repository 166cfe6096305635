"""The peak of live tensor bytes, counted: no allocator, no clock, the same on every machine."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Live(TorchDispatchMode):
    """Counts every storage that an operation makes, until it is gone. What was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def _note(self, tensors: Any, count: bool) -> None:
        for tensor in tree_iter(tensors):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                size = storage.nbytes() if count else 0
                self.known.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self._gone, storage._cdata, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self._note(args, count=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, count=True)
        self.peak = max(self.peak, self.now)
        return out


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors made by ``run`` that live at one time."""
    with _Live() as live:
        run()
    return live.peak
