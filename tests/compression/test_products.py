"""The number format that a CPU multiplies in: what is converted, what is not, and how it is chosen."""

import itertools

import pytest
import torch
from torch import nn

import ctplab as ctp
from ctplab.compression import onednn, products
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.capture import Watch
from ctplab.compression.products import Converted, fastest, products_in, ways

FLOAT32, BFLOAT16 = Arithmetic(torch.float32), Arithmetic(torch.bfloat16)
BY_ONEDNN = Arithmetic(torch.float32, onednn=True)
ATTENTION = Arithmetic(torch.bfloat16, attention=True)
has_onednn = pytest.mark.skipif(not onednn.available(), reason="this build of torch has no oneDNN")

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
    other = BFLOAT16 if dtype == torch.float32 else FLOAT32
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


@has_onednn
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_multiplies_in_float32(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(512, 96).to(dtype)
    x = torch.randn(2, 40, 512, dtype=dtype)
    size = x.double().abs() @ layer.weight.double().abs().T + layer.bias.double().abs()
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    plain = layer(x)
    with products_in(layer, BY_ONEDNN):
        out = layer(x)
    assert out.dtype == dtype
    # float32 sums of 513 terms, and at the end half a unit in the last place of a bfloat16 result
    bound = 513 * 2**-24 * size + (HALF * exact.abs() if dtype == torch.bfloat16 else 0)
    assert ((out.double() - exact).abs() <= bound).all()
    assert torch.equal(layer(x), plain) and "forward" not in vars(layer), "all is as it was"


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ((20, 16, 8, 8), BFLOAT16),  # clearly faster
        ((20, 16, 8, 7), ATTENTION),  # and faster still by its attention
        ((20, 10, 9, 9), BY_ONEDNN),  # faster in float32, and the other format not clearly more so
        ((20, 19, 18, 18), FLOAT32),  # not clearly
        ((20, 40, 40, 40), FLOAT32),
    ],
)
def test_the_clearly_fastest_way_is_chosen(monkeypatch, milliseconds, chosen):
    each = itertools.chain.from_iterable((0.0, one / 1000) for one in milliseconds * products.REPEATS)
    clock = list(itertools.accumulate(each))
    monkeypatch.setattr(products.time, "process_time", lambda: clock.pop(0))
    monkeypatch.setattr(onednn, "linear", nn.functional.linear)
    monkeypatch.setattr(products, "WORTH", 64)
    block = nn.Linear(8, 8)
    choice = [FLOAT32, BY_ONEDNN, BFLOAT16, ATTENTION]
    assert fastest(choice, block, lambda: block(torch.zeros(1, 8)), torch.zeros(1, 4, 8)) == chosen


def test_noise_decides_nothing_for_small_blocks(monkeypatch):
    """Their passes are short: any way may seem the fastest. So none is tried, and every run computes the same."""
    monkeypatch.setattr(products, "processor_seconds", None)
    small = nn.Sequential(nn.Linear(1000, 1000), nn.LayerNorm(1000), nn.Linear(1000, 999, bias=False))
    assert fastest([FLOAT32, BFLOAT16, ATTENTION], small, small, torch.zeros(1, 4, 1000)) == FLOAT32
    large = nn.Linear(1000, 2000, device="meta")
    with pytest.raises(TypeError, match="NoneType"):
        fastest([FLOAT32, BFLOAT16, ATTENTION], large, large, torch.zeros(1, 4, 1000))


def test_what_takes_far_too_long_is_tried_once(monkeypatch):
    now, tried = [0.0], []

    def multiply(seconds):
        tried.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(products.time, "process_time", lambda: now[0])
    found = products.processor_seconds([8.0, 1.0, 2.0], multiply)
    assert found == {8.0: 8.0, 1.0: 1.0, 2.0: 2.0} and tried == [8.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]


@torch.no_grad()
def test_a_changed_weight_is_converted_again():
    """The solver changes weights in place, or puts others in their place, while a block multiplies in bfloat16."""
    torch.manual_seed(0)
    layer, x, other = nn.Linear(64, 32, bias=False), torch.randn(5, 64), nn.Parameter(torch.randn(32, 64))
    with products_in(layer, BFLOAT16):
        for change in (lambda: None, lambda: layer.weight[:16].T.mul_(2), lambda: setattr(layer, "weight", other)):
            change()
            x.mul_(-1.5)
            assert torch.equal(layer(x), (x.bfloat16() @ layer.weight.bfloat16().T).float())


def test_the_same_tensor_is_converted_once():
    inside, x = Converted(torch.bfloat16), torch.randn(4)
    assert inside.of(x) is inside.of(x)
    assert torch.equal(inside.of(x.add_(1)), x.bfloat16())
    with torch.inference_mode():
        y = torch.randn(4)
        assert torch.equal(inside.of(y), y.bfloat16()) and torch.equal(inside.of(y.add_(1)), y.bfloat16())


def test_which_ways_there_are_to_choose_from(monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: True)
    assert ways(torch.float32, None) == [FLOAT32, BY_ONEDNN, BFLOAT16, ATTENTION]
    assert ways(torch.bfloat16, None) == [BFLOAT16, ATTENTION, FLOAT32, BY_ONEDNN]
    assert ways(torch.bfloat16, "float32") == [FLOAT32, BY_ONEDNN]
    assert ways(torch.float32, "bfloat16") == [BFLOAT16, ATTENTION]
    assert ways(torch.float64, None) == [Arithmetic(torch.float64)], "models of other dtypes stay as they are"
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert ways(torch.float32, None) == [FLOAT32, BFLOAT16, ATTENTION]


@has_onednn
def test_codes_hardly_depend_on_what_computes_the_products(llama, windows, quiet, monkeypatch):
    """Only the order of sums differs, so a code moves only if a weight lies almost halfway between two."""
    spec, full, errors, found = ctp.CompressionSpec(bits=4, true_sequential=True), llama(windows).logits, [], []
    for way in (FLOAT32, BY_ONEDNN):
        monkeypatch.setattr("ctplab.compression.walk.ways", lambda own, products, way=way: [way])
        small, _ = ctp.compress(llama, windows, spec, **quiet)
        found.append(torch.cat([p.flatten() for p in small.model.layers.parameters()]))
        errors.append((small(windows).logits - full).norm() / full.norm())
    assert (found[0] != found[1]).float().mean() < 0.01
    assert abs(errors[1] / errors[0] - 1) < 0.01  # far less than between two grids or orders of columns


@pytest.mark.parametrize("settings", [{"bits": 4}, {"bits": 4, "sparsity": 0.5, "true_sequential": True}])
def test_the_result_is_as_good(llama, windows, settings, quiet, monkeypatch):
    """The loss is against the solver's own Hessian, so the models' outputs are compared: with the full model's."""
    spec = ctp.CompressionSpec(**settings)
    full, errors = llama(windows).logits, {}
    for way in (FLOAT32, BFLOAT16, ATTENTION):
        monkeypatch.setattr("ctplab.compression.walk.ways", lambda own, products, way=way: [way])
        small, report = ctp.compress(llama, windows, spec, **quiet)
        assert {layer.products for layer in report.layers} == {way.name}
        errors[way] = (small(windows).logits - full).norm() / full.norm()
    # Hessians and inputs are off by less than the dampening, which moves a few codes to their neighbours
    assert max(errors[BFLOAT16], errors[ATTENTION]) < 1.1 * errors[FLOAT32]


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
