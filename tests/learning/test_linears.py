"""Linear layers that multiply by oneDNN while a CPU learns: the same numbers, and only where it is worth it."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ctplab.compression import onednn, products
from ctplab.learning import linears
from ctplab.learning.fused import Fused

ROUNDING = 2e-5
"""Float32 sums of 40 to 300 products, relative to the largest result: their order differs."""
pytestmark = pytest.mark.skipif(not onednn.available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learned", [("x",), ("x", "weight", "bias"), ("weight",)])
def test_gradients_are_those_of_float64(learned, bias):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 40, 300), "weight": (70, 300)} | ({"bias": (70,)} if bias else {})
    values = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    down = torch.randn(3, 40, 70, generator=generator)
    found, exact = [], []
    for multiply, dtype, into in (
        (onednn.learned_linear, torch.float32, found),
        (nn.functional.linear, torch.float64, exact),
    ):
        leaves = {
            name: value.detach().to(dtype, copy=True).requires_grad_(name in learned) for name, value in values.items()
        }
        y = multiply(*leaves.values())
        y.backward(down.to(dtype))
        into += [y, *(leaf.grad for leaf in leaves.values())]
    for mine, wanted in zip(found, exact, strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None:
            assert (mine - wanted).abs().max() < ROUNDING * wanted.abs().max()


def test_a_frozen_layer_keeps_nothing_of_its_input():
    kept = []
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        onednn.learned_linear(x, weight)
    assert [tuple(t.shape) for t in kept] == [(6, 8)]


def test_the_model_computes_the_same_loss_and_gradient(llama, monkeypatch):
    monkeypatch.setattr(linears, "WORTH", 0)
    monkeypatch.setattr(linears, "faster", lambda weight: True)
    monkeypatch.setattr(linears, "kept_answer", lambda model, what, find: find())
    ids = torch.arange(24).view(2, 12)
    rows = llama.get_input_embeddings()(ids).detach()
    fused, grads, logits = Fused.of(llama), [], []
    assert fused is not None
    for how in (None, fused):
        states = rows.clone().requires_grad_(True)
        if how is None:
            out = llama(inputs_embeds=states).logits
        else:
            with how.on():
                out = llama(inputs_embeds=states).logits
        out.log_softmax(-1)[..., 0].sum().backward()
        grads.append(states.grad)
        logits.append(out)
    for plain, mine in (grads, logits):
        assert (mine - plain).abs().max() < ROUNDING * plain.abs().max()
    assert not any("forward" in vars(module) for module in llama.modules())


def test_weights_that_are_learned_are_asked_for_each_time(monkeypatch):
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    monkeypatch.setattr(linears, "WORTH", 0)
    monkeypatch.setattr(linears, "kept_answer", lambda model, what, find: {"faster": True})
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    ((_, forward),) = linears.find(layer)
    parametrize.register_parametrization(layer, "weight", Twice())
    torch.testing.assert_close(forward(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    forward(x).sum().backward()
    # d/dW of the original weight: twice the sum of x
    (original,) = (p for name, p in layer.named_parameters() if name.endswith("original"))
    torch.testing.assert_close(original.grad, 2 * x.sum(0).expand(8, -1), rtol=1e-5, atol=1e-5)
    assert len(linears.find(layer)) == 1, "found again, now that it is learned"


def test_small_models_and_other_dtypes_are_left_alone(llama, monkeypatch):
    monkeypatch.setattr(linears, "kept_answer", pytest.fail)
    assert linears.find(llama) == []
    monkeypatch.setattr(linears, "WORTH", 1)
    assert linears.find(llama.double()) == []
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert linears.find(llama.float()) == []


@pytest.mark.parametrize(("seconds", "chosen"), [((0.3, 0.1), True), ((0.3, 0.28), False), ((0.1, 0.3), False)])
def test_only_what_is_clearly_faster_is_taken(monkeypatch, seconds, chosen):
    clock = list(itertools.accumulate(itertools.chain.from_iterable((0.0, s) for s in seconds * products.REPEATS)))
    monkeypatch.setattr(products.time, "process_time", lambda: clock.pop(0))
    assert linears.faster(torch.randn(8, 16)) == chosen
