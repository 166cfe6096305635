"""Several processes on one prompt (``accelerate launch``): each takes its part of every batch, gradients are summed.

All that is learned is a few small tensors, so data-parallel training is one small all-reduce a step. Every function
is a plain no-op in a single process.
"""

import os

import torch.distributed as dist
from torch import Tensor


def join() -> str | None:
    """Enter the group that ``accelerate launch`` or ``torchrun`` opened; returns this process's device, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return str(PartialState().device)


def leave() -> None:
    """Leave the group, so that no process waits for another at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return size() == 1 or dist.get_rank() == 0


def share(rows: Tensor) -> Tensor:
    """This process's part of what all processes do together: (n, ...) -> about (n / size, ...)."""
    return rows if size() == 1 else rows.tensor_split(size())[dist.get_rank()]


def add_up(tensors: list[Tensor]) -> None:
    """Sum each tensor over the processes, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()
