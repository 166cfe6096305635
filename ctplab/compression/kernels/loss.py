"""The loss of logits and its gradient, which overwrites them, in one Triton kernel.

Written in operations of torch, a row of logits is read and written a dozen times, most of them in fp32. Here it is read
twice and written once, in its own dtype, and nothing else of its size exists.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8  # values of a row at a time, and warps a row


@triton.jit
def _lse(X, V, BLOCK: tl.constexpr):
    """log Σ exp of the V values from X on."""
    most, total = float("-inf"), 0.0
    for first in range(0, V, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(X + i, mask=i < V, other=float("-inf")).to(tl.float32)
        new = tl.maximum(most, tl.max(x, 0))
        at = tl.where(new > float("-inf"), new, 0.0)  # a block may hold -inf alone
        total = total * tl.exp(most - at) + tl.sum(tl.exp(x - at), 0)
        most = new
    return most + tl.log(total)


@triton.jit
def _loss(
    Logits, Wanted, Targets, Weights, Loss, V, stride, wanted_stride, kl,
    TAUGHT: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its loss, and the gradient in place. ``Wanted``: the teacher's logits."""
    row = tl.program_id(0).to(tl.int64)
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(Weights + row).to(tl.float32)
    X, Q = Logits + row * stride, Wanted + row * wanted_stride
    target = tl.load(Targets + row)
    lse = _lse(X, V, BLOCK)
    loss = (1.0 - kl) * (lse - tl.load(X + target).to(tl.float32))
    away = tl.zeros((BLOCK,), tl.float32)
    if TAUGHT:
        wanted_lse = _lse(Q, V, BLOCK)
    tl.debug_barrier()  # the target's logit is read before it is overwritten
    for first in range(0, V, BLOCK):
        i = first + tl.arange(0, BLOCK)
        ok = i < V
        logp = tl.load(X + i, mask=ok, other=float("-inf")).to(tl.float32) - lse
        gradient = tl.exp(logp) - tl.where(i == target, 1.0 - kl, 0.0)
        if TAUGHT:
            logq = tl.load(Q + i, mask=ok, other=float("-inf")).to(tl.float32) - wanted_lse
            q = tl.exp(logq)
            gradient -= kl * q
            away += q * (tl.where(q > 0.0, logq, 0.0) - tl.where(q > 0.0, logp, 0.0))
        tl.store(X + i, (weight * gradient).to(Logits.dtype.element_ty), mask=ok)
    if TAUGHT:
        loss += kl * tl.sum(away, 0)
    tl.store(Loss + row, weight * loss)


def loss_and_gradient_(
    logits: Tensor, targets: Tensor, kl: float, wanted: Tensor | None, weights: Tensor | None = None
) -> Tensor:
    """Losses (n,) in fp32: (1 - kl)·NLL + kl·KL(teacher || student). The gradient overwrites ``logits`` (n, V).

    ``targets`` (n,); ``wanted``: the teacher's logits (n, V), needed if kl > 0; ``weights`` (n,): of each row's loss.
    """
    taught = wanted is not None and kl > 0
    wanted = wanted if wanted is not None and taught else logits  # stands for a tensor that is not touched
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current card
        _loss[(len(logits),)](
            logits, wanted, targets, losses if weights is None else weights, losses,
            logits.shape[1], logits.stride(0), wanted.stride(0), float(kl),
            TAUGHT=taught, WEIGHTED=weights is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return losses
