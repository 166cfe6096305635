"""True-sequential calibration: a batch that waits for a group must see the same inputs as a batch that starts anew."""

import dataclasses

import pytest
import torch
from torch import nn

import ctplab as ctp
from ctplab.compression import walk
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.capture import Call, Flow, Grouping, find_groups
from ctplab.compression.staging import staged
from ctplab.models.anatomy import blocks, linears


@pytest.fixture
def windows(web):
    return web.train.sample(100, seed=0)  # of 48 tokens: passes of 42 and 22 windows make a batch, 36 another


def compressed(model, windows, quiet, **settings):
    return ctp.compress(model, windows, ctp.CompressionSpec(**settings), batch=64, **quiet)


@pytest.mark.parametrize("settings", [{"bits": 3}, {"bits": 4, "sparsity": 0.5}])
def test_waiting_gives_the_same_bits_as_starting_anew(model, windows, quiet, monkeypatch, settings):
    """Every family: fused, parallel and sequential blocks. A plan that is not stoppable makes passes start anew."""
    waited, report = compressed(model, windows, quiet, true_sequential=True, **settings)
    monkeypatch.setattr(walk, "find_groups", lambda *args: dataclasses.replace(find_groups(*args), stoppable=False))
    anew, other = compressed(model, windows, quiet, true_sequential=True, **settings)
    assert [layer.name for layer in report.layers] == [layer.name for layer in other.layers]
    for (name, a), b in zip(waited.named_parameters(), anew.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_each_layer_is_solved_on_what_the_compressed_layers_before_it_make(llama, windows, quiet):
    """The reported loss is the output error on the inputs that the compressed model really has."""
    small, report = compressed(llama, windows, quiet, bits=2, true_sequential=True)
    inputs = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, at=f"{block}.{name}": inputs.update({at: args[0]}))
        for block, module in blocks(small)
        for name, layer in linears(module).items()
    ]
    small(windows)
    for layer in report.layers:
        x = inputs[layer.name].flatten(0, 1)
        change = small.get_submodule(layer.name).weight - llama.get_submodule(layer.name).weight
        error = float((x @ change.T).square().sum() / len(x))
        assert layer.loss == pytest.approx(error, rel=1e-3), layer.name  # fp32 through several layers
    for hook in hooks:
        hook.remove()


class Choosy(nn.Module):
    """A block that sends a batch to its expert only where the batch's first value is positive."""

    def __init__(self):
        super().__init__()
        self.first, self.expert, self.last = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x):
        y = self.first(x)
        if x[0, 0] > 0:
            y = y + self.expert(y)
        return y + self.last(y)


@torch.no_grad()
@pytest.mark.parametrize("advance", [True, False])
def test_a_batch_that_skips_a_group_waits_at_the_next(advance):
    torch.manual_seed(0)
    block, states = Choosy(), [torch.randn(1, 4).abs() * sign for sign in (1, -1, 1)]
    flow = Flow(list(states), {1: [Call((), {})]}, [range(0, 2), range(2, 3)])
    order = Grouping((("first",), ("expert",), ("last",)), True)
    tokens = {}
    for group, hessian in staged(
        flow, 0, block, order, Arithmetic(torch.float32), true_sequential=True, advance=advance
    ):
        tokens[group[0]] = hessian.tokens
        getattr(block, group[0]).weight.mul_(2)  # stands for the solver: what comes later must see it
    assert tokens == {"first": 3, "expert": 2, "last": 3}
    expected = [block(x) for x in states] if advance else states
    assert all(torch.equal(a, b) for a, b in zip(flow.hidden, expected, strict=True))


class Careless(nn.Module):
    """A block that writes over the input of its linear once that has been used."""

    def __init__(self):
        super().__init__()
        self.first, self.last = (nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, x):
        x = x + 1
        y = self.first(x)
        x.zero_()
        return self.last(y)


@torch.no_grad()
@pytest.mark.parametrize("true_sequential", [True, False])
def test_an_input_that_is_written_over_counts_as_it_was(true_sequential):
    torch.manual_seed(0)
    block, states = Careless(), [torch.randn(2, 4), torch.randn(2, 4)]
    flow = Flow(list(states), {1: [Call((), {})], 2: [Call((), {})]}, [range(0, 2)])
    order = find_groups(block, lambda: flow.sample(0, block))
    stages = staged(flow, 0, block, order, Arithmetic(torch.float32), true_sequential=true_sequential, advance=False)
    hessians = {group[0]: hessian.matrix for group, hessian in stages}
    x = torch.cat(states).double() + 1
    torch.testing.assert_close(hessians["first"].double(), 2 * x.T @ x / 4, rtol=1e-5, atol=1e-5)  # fp32 products


def test_an_error_leaves_no_pass_behind(llama, windows, quiet):
    """The error comes while every pass waits at the block's last layer."""
    name, layer = list(linears(blocks(llama)[0][1]).items())[-1]
    layer.weight[0, 0] = float("nan")
    spec = ctp.CompressionSpec(bits=4, true_sequential=True)
    with pytest.raises(ctp.InputError, match=f"{name}.*NaN") as kept:  # and its frames with it
        ctp.compress(llama, windows, spec, inplace=True, **quiet)
    assert kept.tb
    assert not any(layer._forward_pre_hooks for _, block in blocks(llama) for layer in linears(block).values())
    assert all(torch.isfinite(p).all() for _, block in blocks(llama)[1:] for p in block.parameters())
