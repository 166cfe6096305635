"""Second moments against float64 products."""

import pytest
import torch

from ctplab.compression import onednn
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.hessian import Hessian


@pytest.mark.parametrize(
    "by_onednn", [False, pytest.param(True, marks=pytest.mark.skipif(not onednn.available(), reason="no oneDNN"))]
)
def test_hessian_is_the_full_product(by_onednn):
    x = torch.randn(3, 40, 600, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(600, x.device, Arithmetic(torch.float32, by_onednn))
    for part in x:
        hessian.add(part)
    flat = x.flatten(0, 1).double()
    # fp32 sums of 120 products
    torch.testing.assert_close(hessian.matrix.double(), 2 * flat.T @ flat / 120, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_bfloat16_hessians_are_off_by_less_than_the_dampening(mean):
    """A large common mean is what plain bfloat16 products would drown in: every entry of H is then large."""
    generator = torch.Generator().manual_seed(0)
    common = mean * torch.randn(300, generator=generator)
    parts = [(torch.randn(n, 300, generator=generator) + common).bfloat16() for n in (5000, 3, 700)]
    hessian = Hessian(300, torch.device("cpu"))
    hessian.add(*parts[:2])
    hessian.add(parts[2])
    flat = torch.cat(parts).double()
    exact = 2 * flat.T @ flat / len(flat)
    error = torch.linalg.matrix_norm(hessian.matrix.double() - exact, 2) / exact.diagonal().mean()
    assert error < 2e-3  # a fifth of the usual dampening of 0.01 of the mean diagonal
    assert torch.equal(hessian.matrix, hessian.matrix.T) and hessian.tokens == len(flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_in_parts_is_the_batch(dtype):
    """However it was cut, and even where the first part has too few tokens to tell what is common to all."""
    x = (torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)) + 3).to(dtype)
    found = []
    for sizes in ((3000,), (1000, 0, 2000), (2, 998, 2000)):
        hessian = Hessian(64, x.device)
        hessian.add(*x.split(list(sizes)))
        hessian.add(x[:0])
        assert hessian.tokens == 3000
        found.append(hessian.matrix)
    # bfloat16: each is off by up to a fifth of the dampening of 0.01; fp32: sums of 3000 products
    tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-5
    for other in found[1:]:
        assert torch.linalg.matrix_norm(other - found[0], 2) < tolerance * found[0].diagonal().mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_lose_nothing_on_a_card(dtype):
    """Products of half-precision numbers are exact in fp32, which leaves the rounding of fp32 sums."""
    x = (torch.randn(4000, 300, generator=torch.Generator().manual_seed(0)) + 3).to(dtype)
    hessian = Hessian(300, torch.device("cuda"))
    hessian.add(*x.cuda().split(1500))
    exact = 2 * x.double().T @ x.double() / 4000
    error = torch.linalg.matrix_norm(hessian.matrix.double().cpu() - exact, 2) / exact.diagonal().mean()
    # a hundredth and a twentieth of the usual dampening of 0.01 of the mean diagonal; fp16 on an H200: 3e-4
    assert error < {torch.bfloat16: 1e-4, torch.float16: 5e-4}[dtype]
