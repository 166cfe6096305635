"""The float32 products of linear layers by oneDNN while a CPU learns, if that is clearly faster there.

See ``compression/onednn``. Forward and backward, most of a step on a CPU is such products.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ctplab.compression import onednn
from ctplab.compression.products import CLEARLY, processor_seconds
from ctplab.machine import processor
from ctplab.models import Model
from ctplab.models.checks import kept_answer

WORTH = 4_000_000
"""Weights of a model from which on it is tried. Steps of smaller ones are not products for the most part."""
TOKENS = 1024
"""What is tried."""


def find(model: Model) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The linear layers of ``model`` with their faster versions: all in float32 on a CPU, or none."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and "forward" not in vars(layer)]
    layers = [layer for layer in layers if type(layer) is nn.Linear or parametrize.is_parametrized(layer)]
    layers = [layer for layer in layers if (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)]
    if sum(layer.in_features * layer.out_features for layer in layers) < WORTH or not onednn.available():
        return []
    where = f"float32 by oneDNN while learning, {processor()}, {torch.get_num_threads()} threads"
    largest = max(layers, key=lambda layer: layer.in_features * layer.out_features)
    if not kept_answer(model, where, lambda: {"faster": faster(largest.weight)})["faster"]:
        return []
    return [(layer, _forward(layer)) for layer in layers]


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        multiply = onednn.learned_linear if x.dtype == torch.float32 else F.linear
        return multiply(x, layer.weight, layer.bias)  # asked for each time: they may be learned

    return forward


@torch.no_grad()
def faster(weight: Tensor) -> bool:
    """Whether oneDNN multiplies ``weight`` (out, in) with some tokens clearly faster than torch's BLAS."""
    x = torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    seconds = processor_seconds([F.linear, onednn.linear], lambda multiply: multiply(x, weight))
    return seconds[F.linear] > CLEARLY * seconds[onednn.linear]
