"""Kernels that a card records once and launches at once from then on (a CUDA graph).

A pass through a small model launches thousands of kernels that take microseconds each, so it waits for the host. A
recording launches them all in one go. It reads and writes the memory that it read and wrote when it was recorded:
whoever replays it puts new inputs into the old tensors, and keeps alive whatever it reads.

What cannot be recorded: a function that waits for the card, or that allocates outside of torch. Whatever raises while a
function is recorded leaves the card as it was, for the caller to run it kernel by kernel.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
STREAMS = 32
"""So many streams torch makes for a card; then it hands out the first ones again."""
_one_at_a_time = Lock()
"""Torch waits for the whole card before a recording, which would break another thread's."""
_rehearsing: dict[int, torch.cuda.Stream] = {}
_spare: dict[int, list[torch.cuda.Stream]] = {}
_known: set[int] = set()  # handles of all streams that are in use here, or spare
_broken: list[Any] = []  # graphs that failed; see _recover


class Recording(Generic[Result]):
    """A function without arguments, recorded. What it returned then is what every replay writes to."""

    bytes: int
    """The card's memory that it keeps for what the function computes."""
    _stream: torch.cuda.Stream | None = None

    def __init__(
        self, run: Callable[[], Result], device: torch.device, *, pool: Any = None, warm_up: int = WARM_UP
    ) -> None:
        """Record ``run``, which is called ``warm_up`` + 2 times. Neither it nor what it refers to is kept.

        ``pool``: memory that recordings share of which only one is in use at a time; by default it has its own.
        Raises RuntimeError if ``run`` waits for the card, or if recording fails otherwise, torch.OutOfMemoryError if
        there is no room for another recording, and whatever ``run`` raises.
        """
        with _one_at_a_time, torch.cuda.device(device):
            card, before = torch.cuda.current_device(), torch.cuda.current_stream()
            pool = torch.cuda.graph_pool_handle() if pool is None else pool
            _rehearse(run, device, before, warm_up)
            stream, graph = _unused_stream(card), torch.cuda.CUDAGraph()
            try:  # other threads may use the card meanwhile
                with (
                    _no_collection(),
                    torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
                ):
                    begun = torch.cuda.memory_reserved()
                    self._result: Result | None = run()
                    self.bytes = max(0, torch.cuda.memory_reserved() - begun)
            except BaseException:
                _recover(before, graph, pool, device)
                _spare.setdefault(card, []).append(stream)
                raise
        self._graph: Any = graph
        self._stream, self._card = stream, card

    def replay(self) -> Result:
        """Launch it again. The next replay overwrites what comes back."""
        self._graph.replay()
        return self._result  # type: ignore[return-value]

    def __del__(self) -> None:
        if self._stream is not None:
            self._graph = self._result = None  # before another recording may have the stream
            _spare.setdefault(self._card, []).append(self._stream)


def _rehearse(run: Callable[[], object], device: torch.device, before: torch.cuda.Stream, warm_up: int) -> None:
    """Run it on a stream aside, as torch asks for before a recording, the last time watched by NeverWaiting."""
    card = torch.cuda.current_device()
    if card not in _rehearsing:
        _rehearsing[card] = _unused_stream(card)
    aside = _rehearsing[card]
    aside.wait_stream(before)
    try:
        with torch.cuda.stream(aside):
            for _ in range(warm_up):
                run()
            with NeverWaiting(device.type):
                run()
    finally:  # also if it raised: the caller goes on with what these kernels write to
        before.wait_stream(aside)


def _unused_stream(card: int) -> torch.cuda.Stream:
    """A stream of the current card on which nothing was recorded that is still alive.

    A graph that goes takes the matrix products' memory of its stream along, which every other graph of that stream
    still writes to (torch 2.12 and 2.13, https://github.com/pytorch/pytorch/issues/193402). Spare ones come first,
    because older torch keeps that memory for each stream.
    """
    if _spare.get(card):
        return _spare[card].pop()
    for _ in range(STREAMS):
        stream = torch.cuda.Stream()
        if stream.cuda_stream not in _known:
            _known.add(stream.cuda_stream)
            return stream
    raise torch.OutOfMemoryError(f"a card has {STREAMS} streams, and each recording needs its own")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Inside, Python collects no garbage: to free another graph, for one, is not allowed during a recording."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _recover(stream: torch.cuda.Stream, graph: Any, pool: Any, device: torch.device) -> None:
    """After a failed recording torch stays on its stream, and its allocator and its random generator wait for the end.

    Torch before 2.12 does not tell the allocator of the end: it would refuse ``torch.cuda.empty_cache`` for good, and
    ask the failed graph about new tensors. The generator learns of the end when a recording succeeds.
    """
    torch.cuda.set_stream(stream)
    card = torch.cuda.current_device()
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(card, pool)  # raises if torch has done it
        _broken.append(graph)
        torch._C._cuda_releasePool(card, pool)
    aside: Any = {"stream": _rehearsing[card], "capture_error_mode": "thread_local"}
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), **aside):
        torch.zeros(1, device=device)
    torch.cuda.set_stream(stream)


def told(error: Exception) -> str:
    """Why a recording failed, in one line."""
    return f"recording failed: {(str(error).splitlines() or [type(error).__name__])[0][:120]}"


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
        if self._waits(getattr(func, "overloadpacket", func).__name__, args, kwargs):
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
        if name == "lift_fresh":  # torch.tensor(number, device=card): a copy from the host, which it waits for
            return tensors[0].numel() > 0
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
