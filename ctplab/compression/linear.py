"""A linear layer that keeps only its packed weights: no dense copy outlives a forward or backward call.

What computes x Wᵀ, by tokens and device:

    a few tokens    on a card with Triton our own kernel, which takes 2, 3, 4 and 8 bits and pruned weights
                    (``kernels/product``); else torch's int4 kernel, if it takes the weights (``int4``)
    more tokens     a dense copy, made by one Triton kernel on a card (``kernels/unpacking``), and the library's product

``packing.unpack`` is the fallback and the reference.
"""

import operator
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctplab.compression import int4
from ctplab.compression.kernels.usable import usable
from ctplab.compression.packing import unpack


@cache
def _kernels() -> tuple[Any, Any]:
    """The modules of Triton's kernels, which not every machine can import; every layer asks for them in every pass."""
    from ctplab.compression.kernels import product, unpacking

    return product, unpacking


class _PackedMatmul(torch.autograd.Function):
    """y = x Wᵀ. The backward pass unpacks W again, so that autograd keeps no dense copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedLinear") -> Tensor:
        ctx.layer = layer
        return x @ layer.dense(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


class PackedLinear(nn.Module):
    """Replaces ``nn.Linear`` (or ``Conv1D``). Its buffers are the parts that :func:`packing.pack` returns.

    Torch's int4 kernels compute the product of a few bfloat16 tokens without gradients, if the weights have 4 bits, no
    pruning and a fitting shape. The layer then keeps the codes in the kernel's order as well: 8 bits per weight in all,
    while nobody learns (:func:`without_copies`).
    """

    def __init__(self, parts: dict[str, Tensor], bits: int | None, bias: Tensor | None) -> None:
        super().__init__()
        self.bits = bits
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = parts["shape"].tolist()
        self.int4_group = int4.group_size(parts, bits)
        self.int4: int4.Int4 | None = None
        self._matrix: Any = None  # the parts as Triton's kernels take them, and the parts that it was made of

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The unpacked weights, (out, in)."""
        first = self._buffers["scale" if "scale" in self._buffers else "mask"]
        matrix = self._for_kernels() if first is not None and usable(first.device) else None
        if matrix is None:
            return unpack(self._parts(), self.bits, dtype)
        return _kernels()[1].dense(matrix, dtype)

    def _for_kernels(self) -> Any:
        """The parts as Triton's kernels take them (``unpacking.Matrix``); None if they do not take them."""
        parts = [self._buffers[name] for name in self.part_names]
        if self._matrix is None or not all(map(operator.is_, parts, self._matrix[1])):
            matrix = _kernels()[1].matrix
            self._matrix = matrix(self._parts(), self.bits, (self.out_features, self.in_features)), parts
        return self._matrix[0]

    def _apply(self, *args: Any, **kwargs: Any) -> "PackedLinear":
        self._matrix = None  # it would keep the parts on the device that they leave
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._matrix = self.int4 = None  # they were made from the weights before

    def _parts(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.part_names}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out). On a card this takes longer to launch than to run, so it asks little."""
        if torch.is_grad_enabled() and x.requires_grad:
            y = _PackedMatmul.apply(x, self)
            assert isinstance(y, Tensor)
        else:
            y = self._on_card(x) if usable(x.device) else self._int4_product(x)
            if y is None:
                y = x @ self.dense(x.dtype).T
        return y if self.bias is None else y + self.bias

    def _on_card(self, x: Tensor) -> Tensor | None:
        """The product of a few tokens from Triton's kernel, of more from a dense copy. None if it does not fit."""
        matrix = self._for_kernels()
        if matrix is None:
            return None
        few, unpacking = _kernels()
        if x.dtype != torch.float64 and few.takes(x.numel() // self.in_features, matrix):
            return few.product(x, matrix)
        return functional.linear(x, unpacking.dense(matrix, x.dtype))

    def _int4_product(self, x: Tensor) -> Tensor | None:
        """The product from torch's int4 kernel. Returns None if no kernel fits or none is faster."""
        few = x.dtype == torch.bfloat16 and x.numel() <= int4.TOKENS.get(x.device.type, 0) * self.in_features
        group, kernel = self.int4_group, self.int4  # another thread may begin to learn meanwhile, without copies
        if not group or not few or not int4.runs_on(x.device):
            return None
        if kernel is None or kernel.codes.device != x.device:
            kernel = int4.prepare(self._parts(), group)
            if not int4.agrees(kernel, self._parts()):  # possible on a processor that our tests have not seen
                warnings.warn(f"torch's int4 kernel disagrees with the weights on {x.device}: not used", stacklevel=2)
                self.int4, self.int4_group = None, 0
                return None
            self.int4 = kernel
        return kernel.product(x.reshape(-1, self.in_features).contiguous()).view(*x.shape[:-1], self.out_features)


@contextmanager
def without_copies(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, packed layers make no copies of their codes: learning multiplies many tokens, and memory is short."""
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, PackedLinear)]
    groups = [(layer, layer.int4_group) for layer in layers if layer.int4_group]
    for layer, _ in groups:
        layer.int4, layer.int4_group = None, 0
    try:
        yield
    finally:
        for layer, group in groups:
            layer.int4_group = group


def read_by_kernels(model: nn.Module) -> Iterator[Tensor]:
    """What packed layers have made of their buffers for products, and read in their place."""
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            if layer._matrix is not None and layer._matrix[0] is not None:
                yield from layer._matrix[0].tensors
            if layer.int4 is not None:
                yield from (layer.int4.codes, layer.int4.affine)
