"""While a card computes, one thread reads the next block and another writes the last one.

On a CPU they would take cores and memory from the products, so there everything happens in turn.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def overlaps(device: str) -> bool:
    """Whether reading and writing happen beside the work on ``device``."""
    return device.startswith("cuda")


class Aside:
    """Reads ahead and writes behind. At the end of the ``with`` block everything is written."""

    def __init__(self, device: str) -> None:
        self._threads = ThreadPoolExecutor(2) if overlaps(device) else None
        self._ahead: dict[int, Future[Tensors]] = {}
        self._written: Future[None] | None = None

    def read(self, index: int, read: Callable[[int], Tensors], last: int) -> Tensors:
        """``read(index)``, which may have begun earlier. Begins ``read(index + 1)``, unless ``index`` is ``last``."""
        if self._threads is None:
            return read(index)
        found = self._ahead.pop(index, None)
        tensors = read(index) if found is None else found.result()
        if index < last:
            self._ahead = {index + 1: self._threads.submit(_pinned, read, index + 1)}
        return tensors

    def write(self, write: Callable[..., None], *args: Any) -> None:
        """``write(*args)``, now or soon. Raises what an earlier write raised."""
        if self._threads is None:
            write(*args)
            return
        self._wait()
        self._written = self._threads.submit(write, *args)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is None:
            return
        try:
            if kind is None:
                self._wait()  # first: what no thread has begun yet would be cancelled below
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)


def _pinned(read: Callable[[int], Tensors], index: int) -> Tensors:
    """Read into memory that a card copies from without the host's help, if there is a card."""
    tensors = read(index)
    return {name: t.pin_memory() for name, t in tensors.items()} if torch.cuda.is_available() else tensors
