"""How a CPU multiplies fastest while it compresses: in float32 or bfloat16, and float32 by torch's BLAS or by oneDNN.

Some processors multiply bfloat16 numbers four times as fast as float32 ones; others take twice as long. Some multiply
float32 twice as fast by oneDNN (see ``compression/onednn``), and some attend faster by bfloat16 products than by
torch's kernel (see ``compression/attention``). So the first block, unless it is small, reads one window of the
calibration text in every way, and the machine keeps the answer. A model's dtype says in what its weights are kept, and
not in what they are multiplied best. Weights and hidden states keep their dtype: only the inputs of linear layers, of
attention and of Hessians are converted, and products are converted back.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.compression import attention, onednn
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.hessian import Hessian

CLEARLY = 1.15
"""How many times as fast another way must be: a measurement repeats to a tenth."""
SLIGHTLY = 1.05
"""The same for another attention, which is a small part of what is measured. The wrong one costs as little."""
WORTH = 2_000_000
"""Weights of a block from which on a choice matters. Passes of smaller ones are not products for the most part."""
REPEATS = 3
HOPELESS = 3
"""A way that takes as many times the least is not tried again."""

C = TypeVar("C")


@contextmanager
def products_in(block: nn.Module, arithmetic: Arithmetic) -> Iterator[None]:
    """Inside, the linear layers of ``block`` multiply in ``arithmetic``. Inputs and outputs keep their dtype."""
    layers = [layer for layer in block.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    layers = [layer for layer in layers if layer.weight.dtype != arithmetic.dtype or arithmetic.onednn]
    inputs = Converted(arithmetic.dtype)  # of the whole block, because q, k and v read the same
    for layer in layers:
        vars(layer)["forward"] = _forward(layer, arithmetic, inputs)
    try:
        with attention.switched(block) if arithmetic.attention else nullcontext():
            yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


class Converted:
    """Converts tensors, and keeps the last result for as long as the same tensor comes and does not change."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._last: tuple[Tensor, int, Tensor] | None = None

    def of(self, x: Tensor) -> Tensor:
        """``x`` in the other dtype."""
        if x.dtype == self.dtype or x.is_inference():  # whether an inference tensor has changed, nobody knows
            return x.to(self.dtype)
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = None  # its memory may serve the new one
            self._last = x, x._version, x.to(self.dtype)
        return self._last[2]


def _forward(layer: nn.Linear, arithmetic: Arithmetic, inputs: Converted) -> Callable[[Tensor], Tensor]:
    multiply, kind = onednn.linear if arithmetic.onednn else F.linear, arithmetic.dtype
    weights = Converted(kind)

    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(kind)
        return multiply(inputs.of(x), weights.of(layer.weight), bias).to(x.dtype)

    return forward


def ways(own: torch.dtype, products: str | None) -> list[Arithmetic]:
    """The ways to choose from for a model of dtype ``own``, its own first. ``products``: only those in this format."""
    if own not in (torch.float32, torch.bfloat16) and products is None:
        return [Arithmetic(own)]
    formats = [own, *({torch.float32, torch.bfloat16} - {own})] if products is None else [getattr(torch, products)]
    by_onednn = [Arithmetic(torch.float32, onednn=True)] if onednn.available() else []
    others = {torch.float32: by_onednn, torch.bfloat16: [Arithmetic(torch.bfloat16, attention=True)]}
    return [way for kind in formats for way in (Arithmetic(kind), *others.get(kind, []))]


@torch.no_grad()
def fastest(choice: Sequence[Arithmetic], block: nn.Module, run: Callable[[], object], states: Tensor) -> Arithmetic:
    """The way in which ``run``, a pass through ``block``, and the Hessian of ``states`` (..., d) take the least time.

    It is the first of ``choice`` unless ``block`` has :data:`WORTH` weights and a later one is faster by
    :data:`CLEARLY`. If they differ in their attention only, :data:`SLIGHTLY` is enough.
    """
    if sum(p.numel() for p in block.parameters() if p.ndim > 1) < WORTH:
        return choice[0]

    def multiply(way: Arithmetic) -> None:
        with products_in(block, way):
            run()
        Hessian(states.shape[-1], states.device, way).add(states)

    seconds = processor_seconds(choice, multiply)
    best = choice[0]
    for way in choice[1:]:
        enough = SLIGHTLY if (way.dtype, way.onednn) == (best.dtype, best.onednn) else CLEARLY
        best = way if seconds[best] > enough * seconds[way] else best
    return best


def processor_seconds(choice: Sequence[C], multiply: Callable[[C], object]) -> dict[C, float]:
    """The least time of ``multiply`` for each of ``choice``, of :data:`REPEATS` that take turns.

    What takes :data:`HOPELESS` times the least is tried once.
    Time is the processor's own, which other programs disturb less than the clock on the wall.
    """
    seconds = dict.fromkeys(choice, float("inf"))
    for _ in range(REPEATS):
        least = min(seconds.values())
        for way in choice:
            if least * HOPELESS < seconds[way] < float("inf"):
                continue
            began = time.process_time()
            multiply(way)
            seconds[way] = min(seconds[way], time.process_time() - began)
    return seconds
