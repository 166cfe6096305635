"""Several processes on one piece of work (``accelerate launch``), on CPUs (gloo) or a GPU each (nccl).

Learning, scoring and compressing deal out batches to the processes, which exchange only small sums: gradients of a
prompt, losses, Hessians. In a single process no function communicates. All processes read the same folders; only the
main one writes and prints.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from ctplab.errors import Interrupted

S = TypeVar("S", Tensor, list, tuple)
T = TypeVar("T")

#: How long a process waits for the others. A process that ended is noticed at once. The limit is for one that works
#: alone, such as the main process while it writes a model.
PATIENCE = timedelta(days=1)


@contextmanager
def group() -> Iterator[str | None]:
    """Join the group that ``accelerate launch`` or ``torchrun`` opened. Yields this process's device; None if no group.

    Raises Interrupted if another process of the group ends early: the launcher then stops this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    from accelerate import PartialState

    def stopped(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped, or another process of this job ended; run the same command again to go on")

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        yield str(PartialState(timeout=PATIENCE).device)
    finally:
        signal.signal(signal.SIGTERM, before)
        if dist.is_initialized():  # so that no process waits for another at exit
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Raise Interrupted if a backend cannot reach another process, which it reports as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise Interrupted("another process of this job ended; run the same command again to go on") from error


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return size() == 1 or dist.get_rank() == 0


def left_alone() -> bool:
    """Whether ``accelerate launch`` was asked for several processes but started one, as it does with ``--cpu``."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ


def share(items: S) -> S:
    """This process's part of ``items``: a contiguous run, about equally long for every process."""
    if size() == 1:
        return items
    rank = dist.get_rank()
    return items[len(items) * rank // size() : len(items) * (rank + 1) // size()]


def add_up(tensors: list[Tensor]) -> None:
    """Sum each tensor over the processes, in place."""
    if size() > 1:
        with _together():
            for tensor in tensors:
                dist.all_reduce(tensor)


def of_main(value: T) -> T:
    """Return the main process's ``value`` in every process."""
    if size() == 1:
        return value
    values = [value]
    with _together():
        dist.broadcast_object_list(values)
    return values[0]


def gather(items: list[T]) -> list[T]:
    """Return the lists of all processes, one after the other, in every process."""
    if size() == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(size())]
    with _together():
        dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def copy_main(tensor: Tensor) -> None:
    """Overwrite ``tensor`` with the main process's values, in place."""
    if size() > 1:
        with _together():
            dist.broadcast(tensor, 0)


def wait() -> None:
    """Wait until all processes have called this."""
    if size() > 1:
        with _together():
            dist.barrier()
