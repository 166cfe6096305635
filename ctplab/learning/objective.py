"""Compute the loss and its gradient for a few rows of logits at a time. Tensors only.

Logits are the largest tensor in a step: (B·T, V) values, and as many again in fp32 for the softmax and for the
gradient. The head is frozen, so each chunk of rows gives its loss and the gradient of its hidden states at once, and
its logits are freed. No tensor of size (B·T, V) ever exists, forward or backward.

A chunk is what one product of the head makes. On a CPU all that follows, a dozen passes, takes so few rows of it at a
time that they stay in the cache, and leaves the gradient where the logits were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab.learning.pieces import CHUNK

Head = Callable[[Tensor], Tensor]
"""Hidden states (n, d) -> logits (n, V)."""

Target = Callable[[slice, Tensor], Tensor]
"""(rows, the student's log-probabilities (n, V)) -> the teacher's log-probabilities (n, V)."""


@dataclass(frozen=True)
class Taught:
    """What the full model says about a batch, as a :data:`Target`: its hidden states, and by rows its logits."""

    states: Tensor  # (n, d): the head's input at each target
    head: Head

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        return self.head(self.states[rows])

    def __call__(self, rows: slice, student: Tensor) -> Tensor:
        return self.chunk(rows)(rows, student)

    def chunk(self, rows: slice) -> Target:
        """The same for these rows or some of them, by one product of the head."""
        logits = self.logits(rows)
        return lambda few, student: logits[few.start - rows.start : few.stop - rows.start].to(student).log_softmax(-1)


CACHED = 1 << 17
"""Values of logits that a CPU works on at a time after the product: half a megabyte in fp32."""


def _wide(x: Tensor) -> Tensor:
    """Convert to fp32 unless ``x`` is float64."""
    return x if x.dtype == torch.float64 else x.float()


def chunks(n: int, vocabulary: int, most: int | None = None) -> list[slice]:
    """Split rows 0 .. n - 1 into pieces whose logits hold at most ``most`` values (at least one row; None: CHUNK)."""
    rows = max(1, (most or CHUNK) // vocabulary)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def loss_and_gradient(logp: Tensor, targets: Tensor, kl: float, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over rows of (1 - kl)·NLL + kl·KL(teacher || student), and its gradient on the student's logits (n, V).

    ``logp``, ``teacher``: log-probabilities (n, V) of student and teacher; ``targets`` (n,). The gradient
    overwrites ``logp``. Up to a constant both losses are cross-entropies, one with the targets' one-hot rows and one
    with the teacher's q. So the gradient is p - ((1 - kl)·onehot + kl·q).
    """
    loss = (kl - 1) * logp.gather(1, targets[:, None]).sum()
    wanted = None
    if kl > 0:
        assert teacher is not None
        wanted = teacher.exp()
        loss = loss + kl * (teacher - logp).mul_(wanted).sum()
    gradient = logp.exp_()
    if wanted is not None:
        gradient.sub_(wanted, alpha=kl)
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), kl - 1))
    return loss, gradient


def with_tail(top: Tensor, ids: Tensor, student: Tensor) -> Tensor:
    """Extend top-K log-probabilities ``top`` (n, K) of tokens ``ids`` (n, K) to log-probabilities of all tokens (n, V).

    The other tokens share the remaining mass in the proportions of the ``student`` (log-probabilities (n, V)). So the
    KL is over K + 1 outcomes, the last one "any other token": it covers the tail's mass and not its shape. K = V gives
    the exact KL.
    """
    rest = (1 - top.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(top.dtype).eps)  # (n, 1)
    own = student.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)  # (n, 1): -inf if no token is left
    return (student + (rest.log() - own)).scatter(1, ids, top)


class _Chunked(torch.autograd.Function):
    """Sum ``loss_of`` over chunks of rows and compute the gradient in the same pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, loss_of: Callable, pieces: list[slice]) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for rows in pieces:
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_(True)
                logits = head(part)
            own = part.detach().clone() if logits is part else logits.detach()  # the loss may overwrite it
            loss, down = loss_of(own, rows)
            total += loss
            (gradient[rows],) = torch.autograd.grad(logits, part, down.to(logits.dtype))
            del logits, own, down  # before the next chunk's exist
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None


def mixed_loss(
    hidden: Tensor,
    head: Head,
    vocabulary: int,
    targets: Tensor,
    kl: float = 0.0,
    teacher: Target | None = None,
    chunk: int | None = None,
    fused: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over rows of (1 - kl)·NLL + kl·KL(teacher || student); differentiable in ``hidden`` (n, d).

    ``chunk``: values of logits at a time (``pieces.chunk_on``); None: ``CHUNK``. ``fused``: in one Triton kernel, if
    it takes such a teacher (``kernels/loss``); ``weights`` (n,) of the rows are for that kernel only.
    """

    def loss_of(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        if fused and logits.dtype != torch.float64 and (kl == 0 or isinstance(teacher, Taught)):
            from ctplab.compression.kernels.loss import loss_and_gradient_

            wanted = teacher.logits(rows).to(logits.device) if isinstance(teacher, Taught) and kl > 0 else None
            own = None if weights is None else weights[rows]
            return loss_and_gradient_(logits, targets[rows], kl, wanted, own).sum(), logits
        assert weights is None, "only the kernel weighs rows"
        taught = teacher if kl > 0 else None
        if isinstance(taught, Taught):
            taught = taught.chunk(rows)
        total = torch.zeros((), dtype=_wide(logits[:0]).dtype, device=logits.device)
        for few in chunks(len(logits), vocabulary, CACHED if logits.device.type == "cpu" else logits.numel()):
            here = slice(rows.start + few.start, rows.start + few.stop)
            logp = torch.log_softmax(_wide(logits[few]), -1)
            q = None if taught is None else taught(here, logp)
            loss, logits[few] = loss_and_gradient(logp, targets[here], kl, q)
            total += loss
        return total, logits

    loss = _Chunked.apply(hidden, head, loss_of, chunks(len(hidden), vocabulary, chunk))
    assert isinstance(loss, Tensor)
    return loss


def hidden_loss(hidden: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over rows of ||hidden - wanted||² / ||wanted||²: (n, d) twice, the student's and the full model's.

    Each row is measured by its own length, so the sum depends neither on the width nor on how a batch is split.
    ``weights`` (n,): of the rows.
    """
    wanted = _wide(wanted)
    size = wanted.square().sum(-1).clamp(min=torch.finfo(wanted.dtype).eps)
    losses = (_wide(hidden) - wanted).square().sum(-1) / size
    return losses.sum() if weights is None else (weights * losses).sum()


@torch.no_grad()
def nll(hidden: Tensor, head: Head, vocabulary: int, targets: Tensor) -> Tensor:
    """Sum over rows of the next-token loss, without gradients."""
    parts = chunks(len(hidden), vocabulary)
    return sum(
        (F.cross_entropy(_wide(head(hidden[r])), targets[r], reduction="sum") for r in parts),
        hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)),
    )
