"""The distance to the full model's hidden states: its value, and every arm's gradient against finite differences."""

from dataclasses import replace

import pytest
import torch
from conftest import from_config, tiny

import ctplab as ctp
from ctplab.learning.keys_values import KeysValues, as_keys_and_values
from ctplab.learning.lora import Adapter
from ctplab.learning.objective import hidden_loss
from ctplab.learning.rows import Rows, learn_steps, start
from ctplab.learning.step import Gradient
from ctplab.learning.teacher import MemoryTeacher, cached_teacher
from ctplab.learning.tuned import Tuned
from ctplab.learning.windows import Windows
from ctplab.prompts.head import halves
from ctplab.specs import LoraSpec

SPEC = ctp.PromptSpec(tokens=5, steps=6, batch=4, warmup=2, evaluate_every=3, validation_windows=4, kl=0.4, hidden=0.3)
CPU = torch.device("cpu")


def test_it_is_the_relative_squared_distance_of_each_row():
    ours = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(5, 7, dtype=torch.float64)
    plain = sum(float(((a - b) ** 2).sum() / (b**2).sum()) for a, b in zip(ours.detach(), theirs, strict=True))
    assert float(hidden_loss(ours.detach(), theirs)) == pytest.approx(plain, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: hidden_loss(x, theirs), ours)
    assert float(hidden_loss(3 * theirs, theirs)) == pytest.approx(5 * 4, rel=1e-12)  # twice its length away
    assert hidden_loss(theirs.half(), theirs.half()).dtype == torch.float32
    assert torch.isfinite(hidden_loss(theirs, torch.zeros_like(theirs)))


def made(kind, model, web, quiet, folder, tokenizer):
    """(the model to learn through, what is learned)."""
    if kind in ("scales", "scales and soft"):
        small, report = ctp.compress(model, web.train.sample(8), ctp.CompressionSpec(bits=3, group_size=8), **quiet)
        ctp.save(small, folder, tokenizer, report, "tiny")
        model = ctp.load(folder, device="cpu", dtype="float32")[0].double()
        prompt = start(model, SPEC).initial if kind == "scales and soft" else None
        return model, Tuned(model, folder, ["scales", "norms"], prompt=prompt)
    model = model.double()
    if kind == "lora":
        pytest.importorskip("peft", reason="PEFT is an optional extra")
        return model, Adapter(model, LoraSpec(r=2, alpha=2, dropout=0.0))
    rows = start(model, SPEC).initial
    return model, Rows(rows, model) if kind == "rows" else KeysValues(as_keys_and_values(model, rows, "kv"), model)


@pytest.mark.parametrize("kind", ["rows", "keys and values", "scales", "scales and soft", "lora"])
def test_gradients_are_those_of_finite_differences(kind, web, quiet, tmp_path, tokenizer):
    full = tiny("gpt2").double()  # LLaMA's norms compute in fp32 whatever the dtype
    model, learnable = made(kind, tiny("gpt2"), web, quiet, tmp_path / "small", tokenizer)
    generator = torch.Generator().manual_seed(2)
    for p in learnable.parameters.values():
        p.data = p.data.double() + 0.1 * torch.randn(p.shape, generator=generator).double()
        p.grad = torch.zeros_like(p)
    text = Windows.of(replace(web.train, stream=web.train.stream[: 8 * 48]), CPU)
    gradient = Gradient.of(learnable, halves(model), text, SPEC, MemoryTeacher(full))
    numbers = torch.tensor([1, 4, 2])
    gradient(numbers, 141)
    ways = {name: torch.randn(p.shape, generator=generator).double() for name, p in learnable.parameters.items()}
    found = sum(float((p.grad * ways[name]).sum()) for name, p in learnable.parameters.items())
    h, losses = 1e-5, []
    for sign in (1, -2):
        for name, p in learnable.parameters.items():
            p.data += sign * h * ways[name]
        losses.append(_exact(gradient, numbers))
    # losses of about 10 in float64 are off by 2e-15, so 1e-10 after the division; the formula by some h^2 = 1e-10
    assert found == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-5, abs=1e-8)
    if kind == "lora":
        learnable.remove()


@torch.no_grad()
def _exact(gradient, numbers):
    """The loss of these windows in float64 (a step adds losses up in fp32): KL, text and states, written out."""
    ids, spec = gradient.text.ids[numbers], gradient.spec
    states, theirs = gradient._states(ids)[:, :-1].flatten(0, 1), gradient.teacher.target(numbers, ids)
    logp = gradient.cut.head(states).log_softmax(-1)
    q = theirs.head(theirs.states).log_softmax(-1)
    nll = -logp.gather(1, ids[:, 1:].reshape(-1, 1)).sum()
    kl = (q.exp() * (q - logp)).sum()
    apart = ((states - theirs.states).square().sum(-1) / theirs.states.square().sum(-1)).sum()
    return float((1 - spec.hidden) * ((1 - spec.kl) * nll + spec.kl * kl) + spec.hidden * apart) / 141


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, kl=0.0, hidden=1.0), replace(SPEC, accumulate=2)])
def test_it_is_learned_with_masks_in_pieces_and_resumed(spec, llama, web, tmp_path):
    masked = replace(web.train, mask=torch.arange(len(web.train.stream)) % 3 > 0)
    settings = {"teacher": tiny("llama"), "tokenizer": None}
    noisy = tiny("llama")
    with torch.no_grad():
        for p in noisy.parameters():
            p += 0.05 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    whole = list(learn_steps(noisy, masked, web.validation, spec, **settings))
    assert whole[-1].loss < whole[0].loss
    state = tmp_path / "state.safetensors"
    steps = learn_steps(noisy, masked, web.validation, spec, state=state, **settings)
    for _ in range(4):
        next(steps)
    steps.close()
    resumed = list(learn_steps(noisy, masked, web.validation, spec, state=state, **settings))
    assert [s.loss for s in resumed] == [s.loss for s in whole[3:]]


def test_pieces_give_the_gradient_of_the_whole(llama, web):
    text = Windows.of(replace(web.train, stream=web.train.stream[: 8 * 48]), CPU)
    found = []
    for pieces in (1, 3):
        learnable = Rows(start(llama, SPEC).initial, llama)
        learnable.rows.grad = torch.zeros_like(learnable.rows)
        spec = replace(SPEC, accumulate=pieces)
        Gradient.of(learnable, halves(llama), text, spec, MemoryTeacher(tiny("llama")))(torch.arange(4), 4 * 47)
        found.append(learnable.rows.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)  # fp32, summed in another order


def test_what_has_no_hidden_states_to_compare_is_refused(llama, web, tmp_path):
    def refused(match, model, teacher):
        with pytest.raises(ctp.InputError, match=match):
            next(learn_steps(model, web.train, web.validation, SPEC, teacher=teacher))

    refused("needs the full model", llama, None)
    few = replace(web.train, stream=web.train.stream[: 2 * 48])
    kept = cached_teacher(llama, few, tmp_path, k=4)
    refused("a cached one has no states", llama, kept)
    from conftest import GROUPED, SHAPE
    from transformers import LlamaConfig

    wide = from_config(LlamaConfig(**SHAPE | GROUPED | {"hidden_size": 48}))
    refused("48 wide, the model's 32", llama, wide)
    for hidden in (-0.1, 1.1):
        with pytest.raises(ctp.InputError, match="hidden must be in"):
            ctp.PromptSpec(hidden=hidden)


def test_recipes_of_older_files_stay_equal():
    assert "hidden" not in ctp.PromptSpec().to_json() and SPEC.to_json()["hidden"] == 0.3
    assert ctp.PromptSpec.from_json(SPEC.to_json()) == SPEC
    assert ctp.PromptSpec.from_json(ctp.PromptSpec().to_json()) == ctp.PromptSpec()
    assert not ctp.PromptSpec().taught and SPEC.taught and replace(SPEC, kl=0.0).taught
