"""Learned keys and values, the full model's keys and values, and the LoRA baseline: the same loop, other parameters."""

from dataclasses import replace

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config, tiny

import ctplab as ctp
from ctplab.learning.keys_values import intact, learn_kv
from ctplab.learning.lora import Adapter, learn_lora, targets
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import logits_after
from ctplab.specs import LoraSpec

SPEC = ctp.PromptSpec(tokens=5, steps=12, batch=4, lr=0.05, warmup=2, evaluate_every=4, validation_windows=4)


def nll(model, front, web):
    return ctp.perplexity(ctp.Arm("x", model, front), web.validation.windows[:4]).nll


def test_learned_keys_and_values_start_at_the_compiled_prompt_and_get_better(model, web, quiet, tmp_path):
    before = [p.clone() for p in model.parameters()]
    earlier = prefix.random_rows(model, 6)
    state = tmp_path / "state.safetensors"
    learned = learn_kv(model, web.train, web.validation, SPEC, earlier=earlier, state=state, **quiet)
    assert learned.prefix.k == 6
    # fp32: a prefix given as rows and as its own keys and values
    assert nll(model, learned.initial, web) == pytest.approx(nll(model, earlier, web), rel=1e-6)
    assert nll(model, learned.prefix, web) < nll(model, earlier, web)
    assert nll(model, learned.prefix, web) / (4 * 47) == pytest.approx(learned.best_validation, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    again = learn_kv(
        model, web.train, web.validation, SPEC, earlier=earlier, state=state, **quiet
    )  # resumed at its end
    assert [s.loss for s in again.steps] == [s.loss for s in learned.steps]
    for pair, kept in zip(again.prefix.kv, learned.prefix.kv, strict=True):
        assert torch.equal(pair[0], kept[0]) and torch.equal(pair[1], kept[1])


def test_keys_and_values_refuse_other_shapes(llama, web, quiet):
    kv = intact(llama, prefix.random_rows(llama, 3))
    with pytest.raises(ctp.InputError, match="other layers or heads"):
        learn_kv(tiny("neox"), web.train, web.validation, SPEC, earlier=kv, **quiet)


def test_intact_keys_and_values_are_the_full_models(llama, web, quiet):
    small, _ = ctp.compress(llama, web.train.sample(8), ctp.CompressionSpec(bits=2), **quiet)
    rows = prefix.random_rows(llama, 4)
    front, ids = intact(llama, rows), web.test.windows[:2]
    with torch.no_grad():
        on_full = logits_after(llama, compile_prefix(llama, front), ids)
        assert torch.equal(on_full, logits_after(llama, compile_prefix(llama, rows), ids))
        mixed = logits_after(small, compile_prefix(small, front), ids)
    # the compressed model reads what the full one wrote: neither model's own answer
    assert not torch.allclose(mixed, logits_after(small, compile_prefix(small, rows), ids), atol=1e-3)
    assert not torch.allclose(mixed, on_full, atol=1e-3)


@pytest.mark.parametrize(
    "family, names",
    [
        ("llama", ["q_proj", "v_proj"]),
        ("opt", ["q_proj", "v_proj"]),
        ("bloom", ["query_key_value"]),
        ("neox", ["query_key_value"]),
        ("gpt2", ["c_attn"]),
    ],
)
def test_lora_finds_learns_and_leaves(family, names, web, quiet):
    pytest.importorskip("peft", reason="PEFT is an optional extra")
    model = tiny(family)
    assert targets(model) == names
    before, modules = [p.clone() for p in model.parameters()], [type(m) for m in model.modules()]
    ids = web.test.windows[:2]
    answer = model(ids).logits
    adapter = Adapter(model, LoraSpec(r=4, alpha=4))
    assert torch.equal(model(ids).logits, answer)  # B is zero
    spec = replace(SPEC, lr=1e-2)
    learned = learn_lora(adapter, web.train, web.validation, spec, **quiet)
    assert (
        learned.best_step > 0
        and learned.best_validation < next(s.validation for s in learned.steps if s.validation is not None) + 1e-9
    )
    scored = nll(model, prefix.none(model), web) / (4 * 47)
    assert scored == pytest.approx(learned.best_validation, rel=1e-6)  # the best weights, without dropout
    adapter.remove()
    assert [type(m) for m in model.modules()] == modules
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(model(ids).logits, answer)


def test_lora_targets_of_falcon_and_what_it_cannot_do(web, tokenizer, tmp_path, quiet):
    pytest.importorskip("peft", reason="PEFT is an optional extra")
    assert targets(from_config(transformers.FalconConfig(**MORE_FAMILIES["FalconConfig"]))) == ["query_key_value"]
    small, report = ctp.compress(tiny("llama"), web.train.sample(8), ctp.CompressionSpec(bits=4), **quiet)
    Adapter(small, LoraSpec(r=2, alpha=2)).remove()  # dense
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path, device="cpu", packed=True)
    with pytest.raises(ctp.InputError, match="packed layers"):
        Adapter(packed, LoraSpec())


def test_the_papers_lora():
    adapter, spec = LoraSpec(), ctp.PromptSpec.lora()
    assert (adapter.r, adapter.alpha, adapter.dropout) == (32, 32, 0.1)
    assert (spec.lr, spec.weight_decay) == (2e-4, 0.0)  # AdamW without decay is Adam


def test_lora_repeats_and_its_dropout_learns_only(llama, web, quiet):
    pytest.importorskip("peft", reason="PEFT is an optional extra")
    losses = []
    for dropout in (0.5, 0.5, 0.0):
        adapter = Adapter(llama, LoraSpec(r=4, alpha=4, dropout=dropout))
        losses.append(
            [s.loss for s in learn_lora(adapter, web.train, web.validation, replace(SPEC, lr=0.05), **quiet).steps]
        )
        adapter.remove()
    assert losses[0] == losses[1] != losses[2]
