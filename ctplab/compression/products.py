"""How a CPU multiplies fastest while it compresses: in float32 or bfloat16, and float32 by torch's BLAS or by oneDNN.

Some processors multiply bfloat16 numbers four times as fast as float32 ones; others take twice as long. Some multiply
float32 twice as fast by oneDNN (see ``compression/onednn``). So the first block reads one pass of the calibration text
in every way, and the machine keeps the answer. A model's dtype says in what its weights are kept, and not in what they
are multiplied best. Weights and hidden states keep their dtype: only the inputs of linear layers and of Hessians are
converted, and products are converted back.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.compression import onednn
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.hessian import Hessian

CLEARLY = 1.15
"""How many times as fast another way must be: a measurement repeats to a tenth."""
WORTH = 0.05
"""Seconds of a pass from which on a choice matters. Shorter passes are not products for the most part."""
REPEATS = 3

C = TypeVar("C")


@contextmanager
def products_in(block: nn.Module, arithmetic: Arithmetic) -> Iterator[None]:
    """Inside, the linear layers of ``block`` multiply in ``arithmetic``. Inputs and outputs keep their dtype."""
    layers = [layer for layer in block.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    layers = [layer for layer in layers if layer.weight.dtype != arithmetic.dtype or arithmetic.onednn]
    for layer in layers:
        vars(layer)["forward"] = _forward(layer, arithmetic)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    multiply, kind = onednn.linear if arithmetic.onednn else F.linear, arithmetic.dtype

    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(kind)
        return multiply(x.to(kind), layer.weight.to(kind), bias).to(x.dtype)

    return forward


def ways(own: torch.dtype, products: str | None) -> list[Arithmetic]:
    """The ways to choose from for a model of dtype ``own``, its own first. ``products``: only those in this format."""
    if own not in (torch.float32, torch.bfloat16) and products is None:
        return [Arithmetic(own)]
    formats = [own, *({torch.float32, torch.bfloat16} - {own})] if products is None else [getattr(torch, products)]
    by_onednn = [Arithmetic(torch.float32, onednn=True)] if onednn.available() else []
    return [way for kind in formats for way in (Arithmetic(kind), *(by_onednn if kind == torch.float32 else []))]


@torch.no_grad()
def fastest(choice: Sequence[Arithmetic], block: nn.Module, run: Callable[[], object], states: Tensor) -> Arithmetic:
    """The way in which ``run``, a pass through ``block``, and the Hessian of ``states`` (..., d) take the least time.

    It is the first of ``choice`` unless a later one is faster by :data:`CLEARLY` in a pass of :data:`WORTH`.
    """

    def multiply(way: Arithmetic) -> None:
        with products_in(block, way):
            run()
        Hessian(states.shape[-1], states.device, way).add(states)

    seconds = processor_seconds(choice, multiply)
    best = choice[0]
    if seconds[best] > WORTH:
        for way in choice[1:]:
            best = way if seconds[best] > CLEARLY * seconds[way] else best
    return best


def processor_seconds(choice: Sequence[C], multiply: Callable[[C], object]) -> dict[C, float]:
    """The least time of ``multiply`` for each of ``choice``, of :data:`REPEATS` that take turns.

    Time is the processor's own, which other programs disturb less than the clock on the wall.
    """
    seconds = dict.fromkeys(choice, float("inf"))
    for _ in range(REPEATS):
        for way in choice:
            began = time.process_time()
            multiply(way)
            seconds[way] = min(seconds[way], time.process_time() - began)
    return seconds
