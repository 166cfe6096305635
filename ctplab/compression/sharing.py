"""Calibration shared by several processes: each runs its own batches of windows, and Hessians are added up.

Activations stay where they are; a group's Hessian is the only thing that travels. Batches are those of one process
and Hessians are fp64 sums of their fp32 products, so the result has the same bits however many share the work.
"""

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.compression.hessian import Hessian
from ctplab.errors import InputError


def deal(calibration: Tensor, batch: int) -> tuple[Tensor, ...]:
    """This process's batches of ``calibration`` (N, T). Raises InputError where some process would have none."""
    batches = torch.split(calibration, batch)
    if len(batches) < parallel.size():
        raise InputError(
            f"{len(calibration)} calibration windows in batches of {batch} are {len(batches)} batches, too few for "
            f"{parallel.size()} processes; give a smaller batch or more windows"
        )
    return parallel.share(batches)


def whole(hessian: Hessian) -> Hessian:
    """``hessian`` of all processes' tokens, in every one of them."""
    tokens = torch.tensor(hessian.tokens, device=hessian.total.device)
    parallel.add_up([hessian.total, tokens])
    hessian.tokens = int(tokens)
    return hessian
