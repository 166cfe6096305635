"""silu(gate) · up in one Triton kernel forward and one backward.

Autograd then keeps gate and up, and not silu(gate) as well; and each number is read and written once, not five times.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers a program


@triton.jit
def _forward(Gate, Up, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(Gate + i, mask=i < n, other=0.0).to(tl.float32)
    up = tl.load(Up + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(Out + i, (gate / (1.0 + tl.exp(-gate)) * up).to(Out.dtype.element_ty), mask=i < n)


@triton.jit
def _backward(Gate, Up, Down, DGate, DUp, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(Gate + i, mask=i < n, other=0.0).to(tl.float32)
    up = tl.load(Up + i, mask=i < n, other=0.0).to(tl.float32)
    down = tl.load(Down + i, mask=i < n, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    slope = share * (1.0 + gate * (1.0 - share))
    tl.store(DGate + i, (down * up * slope).to(DGate.dtype.element_ty), mask=i < n)
    tl.store(DUp + i, (down * gate * share).to(DUp.dtype.element_ty), mask=i < n)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        with torch.cuda.device_of(out):  # Triton launches on the current card
            _forward[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK=BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        found = torch.empty_like(gate), torch.empty_like(up)
        grid = (triton.cdiv(gate.numel(), BLOCK),)
        with torch.cuda.device_of(gate):  # Triton launches on the current card
            _backward[grid](gate, up, grads[0].contiguous(), *found, gate.numel(), BLOCK=BLOCK)
        return found


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, computed in fp32 and rounded once. Differentiable in both."""
    return _Gated.apply(gate, up)
