"""Share the calibration among several processes. Each runs its own batches of windows, and Hessians are summed.

Activations stay in their process; only a group's Hessian travels. The batches are those of a single process, and
Hessians are fp64 sums of fp32 products. So the result has the same bits for any number of processes.
"""

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.compression.hessian import Hessian
from ctplab.errors import InputError


def deal(calibration: Tensor, batch: int) -> tuple[Tensor, ...]:
    """This process's batches of ``calibration`` (N, T). Raises InputError if a process would get none."""
    batches = torch.split(calibration, batch)
    if len(batches) < parallel.size():
        raise InputError(
            f"{len(calibration)} calibration windows in batches of {batch} are {len(batches)} batches, too few for "
            f"{parallel.size()} processes; give a smaller batch or more windows"
        )
    return parallel.share(batches)


def whole(hessian: Hessian) -> Hessian:
    """Sum ``hessian`` over all processes, in place. Every process gets the sum over all tokens."""
    tokens = torch.tensor(hessian.tokens, device=hessian.total.device)
    parallel.add_up([hessian.total, tokens])
    hessian.tokens = int(tokens)
    return hessian
