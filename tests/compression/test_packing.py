"""Packed bits hold the same numbers as memory."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ctplab.compression import int4, linear
from ctplab.compression.linear import PackedLinear
from ctplab.compression.obs import solve
from ctplab.compression.packing import pack, pack_bits, packed_bytes, unpack, unpack_bits
from ctplab.specs import CompressionSpec

SPECS = [
    CompressionSpec(bits=2),
    CompressionSpec(bits=3),
    CompressionSpec(bits=4, group_size=8),
    CompressionSpec(bits=3, group_size=8, act_order=True),
    CompressionSpec(bits=8, symmetric=True),
    CompressionSpec(sparsity=0.5),
    CompressionSpec(pattern="2:4"),
    CompressionSpec(bits=4, sparsity=0.5),
]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 33, 1000])
def test_bits_round_trip(bits, n):
    values = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(n))
    packed = pack_bits(values, bits)
    assert packed.numel() == -(-n * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, n).long(), values)


def test_the_stream_is_little_endian():
    assert pack_bits(torch.tensor([0b001, 0b010, 0b100]), 3).tolist() == [0b00010001, 0b1]


def solution(spec):
    generator = torch.Generator().manual_seed(1)
    W, X = torch.randn(24, 40, generator=generator), torch.randn(40, 200, generator=generator)
    return solve(W, 2 * X @ X.T / 200, spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.tag)
def test_a_solution_survives_packing(spec):
    found = solution(spec)
    parts = pack(found, spec.bits)
    torch.testing.assert_close(unpack(parts, spec.bits), found.W_hat, rtol=0, atol=1e-6)  # scale·(q-z) regrouped
    if found.mask is not None:
        assert torch.equal(unpack(parts, spec.bits)[found.mask], torch.zeros(int(found.mask.sum())))


def test_joint_four_bit_half_sparse_costs_three_bits_a_weight():
    parts = pack(solution(CompressionSpec(bits=4, sparsity=0.5)), 4)
    codes = 8 * (parts["codes"].numel() + parts["mask"].numel()) / (24 * 40)
    assert codes == pytest.approx(3, abs=0.05)
    assert packed_bytes(parts) == sum(t.numel() * t.element_size() for t in parts.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.tag)
def test_packed_linear_is_the_dense_linear_forward_and_backward(spec):
    parts = pack(solution(spec), spec.bits)
    dense, bias = unpack(parts, spec.bits), torch.randn(24)
    x, y = (torch.randn(5, 40).requires_grad_(True) for _ in range(2))
    y = x.detach().clone().requires_grad_(True)
    layer = PackedLinear(parts, spec.bits, bias)
    out, reference = layer(x), torch.nn.functional.linear(y, dense, bias)
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)  # fp32, another summation order
    out.square().sum().backward()
    reference.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_size", [None, 32, 64])
def test_few_bfloat16_tokens_take_torchs_int4_product(group_size):
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(48, 128, generator=generator), torch.randn(512, 128, generator=generator)
    found = solve(W, X.T @ X / 256, CompressionSpec(bits=4, group_size=group_size))
    layer = PackedLinear(pack(found, 4), 4, torch.randn(48).bfloat16())
    x = X[:6].bfloat16().view(2, 3, 128)
    exact = torch.nn.functional.linear(x.double(), found.W_hat.double(), layer.bias.double())
    with torch.no_grad():
        unpacked = layer(X.bfloat16())  # more tokens than the int4 product is worth
        assert layer.int4 is None
        out = layer(x)
    assert layer.int4 is not None and out.shape == (2, 3, 48)
    size = exact.abs().max()
    assert (out.double() - exact).abs().max() < 0.02 * size  # bfloat16 scales and offsets: 8 bits
    assert (unpacked[:6].view(2, 3, 48).double() - exact).abs().max() < 0.02 * size
    layer.int4 = None
    layer(x.requires_grad_(True)).sum().backward()  # gradients: unpacked
    assert layer.int4 is None and x.grad is not None


@pytest.mark.parametrize("columns", [32, 64, 96, 256])
def test_the_gpus_int4_kernel_takes_our_layout(columns):
    """Without a GPU: torch's own rules on shapes and types, which it checks on tensors without data."""
    with FakeTensorMode():  # its device does not matter to these rules
        codes = int4._cuda_order(torch.empty(48, columns, dtype=torch.uint8))
        assert codes.dtype == torch.int32 and codes.numel() * 8 == 48 * columns  # four bits a weight
        affine = torch.empty(columns // 32, 48, 2, dtype=torch.bfloat16)
        x = torch.empty(3, columns, dtype=torch.bfloat16)
        assert torch.ops.aten._weight_int4pack_mm(x, codes, 32, affine).shape == (3, 48)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("group_size", [None, 32, 64])
def test_few_tokens_on_a_gpu_take_its_int4_kernel(group_size, monkeypatch):
    """Without Triton. With it our own kernel takes them, and no copy of the codes exists."""
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(48, 128, generator=generator), torch.randn(512, 128, generator=generator)
    found = solve(W, X.T @ X / 256, CompressionSpec(bits=4, group_size=group_size))
    layer = PackedLinear(pack(found, 4), 4, torch.randn(48).bfloat16()).cuda()
    x = X[:6].bfloat16().cuda()
    exact = torch.nn.functional.linear(x.double(), found.W_hat.double().cuda(), layer.bias.double())
    with torch.no_grad():
        layer(x)
        assert layer.int4 is None
        monkeypatch.setattr(linear, "usable", lambda device: False)
        out = layer(x)
    assert layer.int4 is not None
    assert (out.double() - exact).abs().max() < 0.02 * exact.abs().max()  # bfloat16 scales and offsets: 8 bits


def test_a_kernel_that_disagrees_is_not_used(monkeypatch):
    """As one would that orders codes in another way: two columns swapped."""
    found = solve(torch.randn(48, 128), torch.eye(128), CompressionSpec(bits=4, group_size=32))
    parts = pack(found, 4)
    swapped = pack(dataclasses.replace(found, codes=found.codes[:, [1, 0, *range(2, 128)]]), 4)
    wrong = int4.prepare(swapped, 32)
    monkeypatch.setattr(int4, "prepare", lambda *_: wrong)
    layer, x = PackedLinear(parts, 4, None), torch.randn(3, 128).bfloat16()
    with torch.no_grad(), pytest.warns(UserWarning, match="disagrees with the weights on cpu"):
        out = layer(x)
    assert torch.equal(out, x @ layer.dense(torch.bfloat16).T)
    with torch.no_grad():
        assert torch.equal(layer(x), out)  # and is not tried, nor warned of, again
    assert layer.int4 is None


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.tag)
def test_shapes_that_int4_does_not_take_are_unpacked(spec):
    parts = pack(solution(spec), spec.bits)  # 24 x 40: neither rows nor groups fit
    dense, x = unpack(parts, spec.bits, torch.bfloat16), torch.randn(3, 40).bfloat16()
    with torch.no_grad():
        assert torch.equal(PackedLinear(parts, spec.bits, None)(x), x @ dense.T)
