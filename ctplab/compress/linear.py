"""A linear layer that keeps its packed weights only: nothing dense lives between calls, forward or backward."""

from typing import Any

import torch
from torch import Tensor, nn

from ctplab.compress.packing import unpack


class _PackedMatmul(torch.autograd.Function):
    """y = x Wᵀ with W unpacked anew in backward, so that autograd keeps no dense copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedLinear") -> Tensor:
        ctx.layer = layer
        return x @ layer.dense(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


class PackedLinear(nn.Module):
    """Stands in for ``nn.Linear`` (or ``Conv1D``); buffers are the parts of :func:`packing.pack`."""

    def __init__(self, parts: dict[str, Tensor], bits: int | None, bias: Tensor | None) -> None:
        super().__init__()
        self.bits = bits
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = parts["shape"].tolist()

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights, (out, in)."""
        return unpack({name: getattr(self, name) for name in self.part_names}, self.bits, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = _PackedMatmul.apply(x, self)
        assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias
