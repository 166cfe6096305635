"""Triton's kernels of a learning step against operations of torch, in float64 where that is possible."""

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here: pip install 'ctplab[dev]' on Linux")

from ctplab.compression.kernels import loss as losses
from ctplab.compression.kernels.placed import placed, taken

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
K, B, T, H, D = 3, 2, 5, 3, 8


def rows(heads=H):
    """Rows as a projection gives them: some columns of a wider matrix."""
    wide = torch.randn(K + B * T, heads * D + 7, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return wide[:, : heads * D].unflatten(1, (heads, D)).requires_grad_(True)


def in_place(x, turn):
    """The same, in operations of torch."""
    if turn is not None:
        low, high = x.chunk(2, -1)
        x = x * turn[0][:, None] + torch.cat([-high, low], -1) * turn[1][:, None]
    x = x.transpose(0, 1)
    return torch.cat([x[None, :, :K].expand(B, -1, -1, -1), x[:, K:].unflatten(1, (B, T)).transpose(0, 1)], 2)


def same_with_gradient(found, expected, x):
    """Equal outputs and gradients of random weights: fp32, sums of a few numbers."""
    torch.testing.assert_close(found, expected)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    grads = [torch.autograd.grad(out, x, g)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_are_turned_and_placed(turned):
    x = rows()
    angles = torch.randn(K + B * T, D // 2, generator=torch.Generator().manual_seed(2)).to(DEVICE).repeat(1, 2)
    turn = (angles.cos(), angles.sin()) if turned else None
    same_with_gradient(placed(x, (K, B, T), turn), in_place(x, turn), x)


def test_angles_repeat_for_every_text():
    x = rows()[K:]
    angles = torch.randn(T, D // 2, generator=torch.Generator().manual_seed(2)).to(DEVICE).repeat(1, 2)
    found = placed(x, (0, B, T), (angles.cos(), angles.sin()))
    whole = angles.repeat(B, 1)
    torch.testing.assert_close(found, placed(x, (0, B, T), (whole.cos(), whole.sin())))


def test_outputs_are_taken_back():
    x = in_place(rows().detach(), None).requires_grad_(True)
    expected = torch.cat([x[0, :, :K].transpose(0, 1), x[:, :, K:].transpose(1, 2).flatten(0, 1)])
    same_with_gradient(taken(x, (K, B, T)), expected, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kl", [0.0, 0.3, 1.0])
def test_losses_and_their_gradient(kl, dtype, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 64)  # a row takes several blocks, the last one not whole
    generator = torch.Generator().manual_seed(0)
    logits, wanted = (3 * torch.randn(5, 200, generator=generator).to(dtype) for _ in range(2))
    logits[0, 64:128] = -torch.inf  # a block without any token
    wanted[0, 60:130] = -torch.inf
    targets, weights = torch.tensor([3, 199, 64, 0, 127]), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5])
    logp, logq = logits.double().log_softmax(-1), wanted.double().log_softmax(-1)
    q = logq.exp()
    away = torch.where(q > 0, q * (logq - logp), 0).sum(-1)
    expected = weights * ((kl - 1) * logp.gather(1, targets[:, None])[:, 0] + kl * away)
    gradient = logp.exp() - kl * q
    gradient[range(5), targets] -= 1 - kl
    logits, *more = (x.to(DEVICE) for x in (logits, targets, wanted, weights))
    found = losses.loss_and_gradient_(logits, more[0], kl, more[1], more[2])
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    one_rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5  # the interpreter cuts off
    torch.testing.assert_close(logits.cpu().double(), weights[:, None] * gradient, rtol=one_rounding, atol=1e-6)
