"""Kernels that a card records once and launches at once from then on (a CUDA graph).

A pass through a small model launches thousands of kernels that take microseconds each, so it waits for the host. A
recording launches them all in one go. It reads and writes the memory that it read and wrote when it was recorded:
whoever replays it puts new inputs into the old tensors, and keeps alive whatever it reads.

What cannot be recorded: a function that waits for the card, or that allocates outside of torch.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
WARM_UP = 3  # runs before the recording, in which kernels are compiled and libraries allocate what they keep
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"}
READS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations that give a number to the host, or a shape that depends on values."""
_one_at_a_time = Lock()
"""Torch records on one stream, and waits for the whole card before: two threads would break each other's recording."""


class Recording(Generic[Result]):
    """A function without arguments, recorded. What it returned then is what every replay writes to."""

    def __init__(
        self, run: Callable[[], Result], device: torch.device, *, pool: Any = None, warm_up: int = WARM_UP
    ) -> None:
        """Record ``run``, which is called ``warm_up`` + 2 times. Neither it nor what it refers to is kept.

        ``pool``: memory that recordings share of which only one is in use at a time; by default it has its own.
        Raises RuntimeError if ``run`` waits for the card, or if recording fails otherwise.
        """
        with _one_at_a_time, torch.cuda.device(device):
            before = torch.cuda.current_stream()
            aside = torch.cuda.Stream()  # torch asks for a stream of its own before a recording
            aside.wait_stream(before)
            with torch.cuda.stream(aside):
                for _ in range(warm_up):
                    run()
                with NeverWaiting(device.type):
                    run()
            before.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            try:  # other threads may use the card meanwhile
                with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                    self._result = run()
            except BaseException:
                _recover(before)
                raise

    def replay(self) -> Result:
        """Launch it again. The next replay overwrites what comes back."""
        self._graph.replay()
        return self._result


def _recover(stream: torch.cuda.Stream) -> None:
    """After a failed recording torch stays on its stream, and the card's random generator waits for its end."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    with suppress(RuntimeError):
        generator.graphsafe_set_state(generator.clone_state())


class NeverWaiting(TorchDispatchMode):
    """Inside, an operation that makes this thread wait for a device raises RuntimeError: it could not be recorded.

    Torch's own switch (``set_sync_debug_mode``) holds for all threads, and others may well wait. What this misses the
    recording itself refuses.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._waits(func.overloadpacket.__name__, args, kwargs):
            raise RuntimeError(f"{func} makes the host wait for the device")
        return func(*args, **kwargs)

    def _waits(self, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        places = {x.device.type for x in tensors}
        if name in ("_to_copy", "copy_"):
            places |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
            return blocks and self.device in places and len(places) > 1
        if self.device not in places:
            return False
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
