"""A linear layer that keeps its packed weights only: nothing dense lives between calls, forward or backward."""

from typing import Any

import torch
from torch import Tensor, nn

from ctplab.compress.packing import full_codes, unpack

INT4_TOKENS = 128
"""Up to how many tokens torch's CPU int4 product is faster than unpacking and a dense one: 50 times at one token, even
at 128. Only its bfloat16 kernel is a fast one."""
INT4_GROUPS = (256, 128, 64, 32)


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
    """Stands in for ``nn.Linear`` (or ``Conv1D``); buffers are the parts of :func:`packing.pack`.

    A few bfloat16 tokens on a CPU, without gradients, go through torch's int4 product where the weights are 4 bits,
    unpruned and of fitting shape; the codes are then kept in its order as well: 8 bits a weight.
    """

    def __init__(self, parts: dict[str, Tensor], bits: int | None, bias: Tensor | None) -> None:
        super().__init__()
        self.bits = bits
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = parts["shape"].tolist()
        self.int4_group = _int4_group(parts, bits)
        self.int4: tuple[Tensor, Tensor] | None = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights, (out, in)."""
        return unpack(self._parts(), self.bits, dtype)

    def _parts(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.part_names}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        few = x.dtype == torch.bfloat16 and x.numel() <= INT4_TOKENS * self.in_features
        needs_grad = torch.is_grad_enabled() and x.requires_grad
        if few and self.int4_group and x.device.type == "cpu" and not needs_grad:
            y = self._int4_product(x)
        else:
            y = _PackedMatmul.apply(x, self)
            assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias

    def _int4_product(self, x: Tensor) -> Tensor:
        if self.int4 is None:
            self.int4 = int4_layout(self._parts(), self.int4_group)
        codes, affine = self.int4
        flat = x.reshape(-1, self.in_features).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, codes, self.int4_group, affine)
        return y.view(*x.shape[:-1], self.out_features)


def _int4_group(parts: dict[str, Tensor], bits: int | None) -> int:
    """The group size for torch's int4 product; 0 where it does not take such weights."""
    if bits != 4 or "mask" in parts or "group" in parts or parts["shape"][0] % 16:
        return 0
    own = int(parts["shape"][1]) // parts["scale"].shape[1]  # one grid a row: any size that divides the columns
    return next((size for size in INT4_GROUPS if own % size == 0), 0)


def int4_layout(parts: dict[str, Tensor], group: int) -> tuple[Tensor, Tensor]:
    """(codes in torch's order, (in / group, out, 2) bfloat16 scale and offset): w = scale · (code - 8) + offset."""
    repeats = int(parts["shape"][1]) // group // parts["scale"].shape[1]
    scale, zero = (parts[name].float().repeat_interleave(repeats, 1) for name in ("scale", "zero"))
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(full_codes(parts, 4).int(), 1)
    return codes, torch.stack([scale, (8 - zero) * scale], -1).transpose(0, 1).contiguous().bfloat16()
