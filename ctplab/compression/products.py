"""In which number format a CPU multiplies while it compresses: float32 or bfloat16, whichever is faster there.

Some processors multiply bfloat16 numbers four times as fast as float32 ones; others take twice as long. A model's dtype
says in what its weights are kept, and not in what they are multiplied best. So the first block reads one pass of the
calibration text in both formats, and the machine keeps the answer. Weights and hidden states keep their dtype: only the
inputs of linear layers and of Hessians are converted, and products are converted back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.compression.hessian import Hessian

CLEARLY = 1.25
"""How many times as fast the other format must be: a measurement repeats to about a tenth."""
WORTH = 0.05
"""Seconds of a pass from which on a choice matters. Shorter passes are not products for the most part."""
REPEATS = 2


@contextmanager
def products_in(block: nn.Module, kind: torch.dtype) -> Iterator[None]:
    """Inside, the linear layers of ``block`` multiply in ``kind``. Inputs and outputs keep their dtype."""
    layers = [layer for layer in block.modules() if type(layer) is nn.Linear and layer.weight.dtype != kind]
    layers = [layer for layer in layers if "forward" not in vars(layer)]
    for layer in layers:
        vars(layer)["forward"] = _forward(layer, kind)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(kind)
        return F.linear(x.to(kind), layer.weight.to(kind), bias).to(x.dtype)

    return forward


@torch.no_grad()
def faster(block: nn.Module, run: Callable[[], object], states: Tensor) -> torch.dtype:
    """The format in which ``run``, a pass through ``block``, and the Hessian of ``states`` (..., d) take less time.

    It is the dtype of ``states`` unless the other one is faster by :data:`CLEARLY` in a pass of :data:`WORTH`. Time is
    the processor's own, which other programs disturb less than the clock on the wall.
    """
    own = states.dtype
    if own not in (torch.float32, torch.bfloat16):
        return own
    other = torch.bfloat16 if own == torch.float32 else torch.float32
    seconds = {own: float("inf"), other: float("inf")}
    for _ in range(REPEATS):
        for kind in seconds:
            began = time.process_time()
            with products_in(block, kind):
                run()
            Hessian(states.shape[-1], states.device, kind).add(states)
            seconds[kind] = min(seconds[kind], time.process_time() - began)
    return other if seconds[own] > max(WORTH, CLEARLY * seconds[other]) else own
