"""The number format that a CPU multiplies in: what is converted, what is not, and how it is chosen."""

import itertools

import pytest
import torch
from torch import nn

import ctplab as ctp
from ctplab.compression import products
from ctplab.compression.capture import Watch
from ctplab.compression.products import faster, products_in

HALF = 2**-8
"""Half a unit in the last place of bfloat16, relative: each of the two inputs is off by as much."""


@pytest.fixture
def windows(web):
    return web.train.sample(8, seed=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_products_are_in_the_other_format(dtype):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8, bias=False)).to(dtype)
    x, seen = torch.randn(5, 64, dtype=dtype), []
    exact = nn.functional.linear(x.double(), block[0].weight.double(), block[0].bias.double())
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    plain = block(x)
    with products_in(block, other), Watch(block, lambda name, x: seen.append(x.dtype)).on():
        out = block[0](x)
        assert block(x).dtype == dtype
    assert set(seen) == {dtype}, "a Hessian gets the inputs as the model has them"
    bound = 3 * HALF * (x.double().abs() @ block[0].weight.double().abs().T + 1)  # both inputs and the output
    assert ((out.double() - exact).abs() <= bound).all()
    assert not torch.equal(out, plain[..., :1].expand_as(out)) and torch.equal(block(x), plain), "all is as it was"
    assert all(parameter.dtype == dtype for parameter in block.parameters())
    with pytest.raises(RuntimeError), products_in(block, other):
        block(torch.randn(5, 63, dtype=dtype))
    assert not any("forward" in vars(layer) for layer in block)


@pytest.mark.parametrize(
    ("own", "other", "chosen"),
    [
        (0.20, 0.05, torch.bfloat16),  # clearly faster
        (0.20, 0.18, torch.float32),  # not clearly
        (0.20, 0.40, torch.float32),
        (0.04, 0.01, torch.float32),  # too short to matter
    ],
)
def test_the_clearly_faster_format_is_chosen(monkeypatch, own, other, chosen):
    ends = itertools.accumulate(itertools.chain.from_iterable((0.0, each) for each in (own, other) * products.REPEATS))
    clock = list(ends)
    monkeypatch.setattr(products.time, "process_time", lambda: clock.pop(0))
    block = nn.Linear(8, 8)
    assert faster(block, lambda: block(torch.zeros(1, 8)), torch.zeros(4, 8)) == chosen


def test_models_of_other_dtypes_stay_as_they_are():
    assert faster(nn.Linear(8, 8), pytest.fail, torch.zeros(4, 8, dtype=torch.float64)) == torch.float64


@pytest.mark.parametrize("settings", [{"bits": 4}, {"bits": 4, "sparsity": 0.5, "true_sequential": True}])
def test_the_result_is_as_good(llama, windows, settings, quiet):
    """The loss is against the solver's own Hessian, so the models' outputs are compared: with the full model's."""
    spec = ctp.CompressionSpec(**settings)
    full, errors = llama(windows).logits, {}
    for kind in ("float32", "bfloat16"):
        small, report = ctp.compress(llama, windows, spec, products=kind, **quiet)
        assert {layer.products for layer in report.layers} == {kind}
        errors[kind] = (small(windows).logits - full).norm() / full.norm()
    # Hessians and inputs are off by less than the dampening, which moves a few codes to their neighbours
    assert errors["bfloat16"] < 1.1 * errors["float32"]


def test_a_model_in_bfloat16_keeps_its_dtype(llama, windows, quiet):
    model = llama.to(torch.bfloat16)
    small, report = ctp.compress(model, windows, ctp.CompressionSpec(bits=4), products="float32", **quiet)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert {layer.products for layer in report.layers} == {"float32"}


def test_tiny_models_multiply_in_their_own_dtype(llama, windows, quiet):
    _, report = ctp.compress(llama, windows, ctp.CompressionSpec(bits=4), **quiet)
    assert {layer.products for layer in report.layers} == {"float32"}


def test_other_formats_are_refused(llama, windows, quiet):
    with pytest.raises(ctp.InputError, match="products must be one of float32, bfloat16"):
        ctp.compress(llama, windows, ctp.CompressionSpec(bits=4), products="int8", **quiet)
