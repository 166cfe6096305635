"""The compiled prefix is computed once for all who ask, never stale, and gone with its model."""

import gc
import weakref

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import left_padded
from ctplab.prompts import compiled, prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_rows

K = 7
TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]


@pytest.fixture
def arm(llama):
    return Arm("soft", llama, prefix.random_rows(llama, K))


@pytest.fixture
def compilations(monkeypatch):
    """One entry for every prefix that is compiled."""
    calls, real = [], compiled.compile_prefix
    monkeypatch.setattr(compiled, "compile_prefix", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_prefix_is_compiled_once_for_all_that_is_generated(arm, tokenizer, compilations):
    for _ in range(2):
        ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=2)
        list(ctp.stream(arm, tokenizer, TEXTS[0], max_new_tokens=2))
        greedy(arm, left_padded([[5, 6], [7]], arm.model, 0), 2)
        ctp.lens([arm], tokenizer, TEXTS[0])
    assert len(compilations) == 1
    ctp.generate(Arm("again", arm.model, arm.prefix), tokenizer, TEXTS, max_new_tokens=2)
    assert len(compilations) == 1, "another arm of the same model and prefix"
    ctp.generate(Arm("other", arm.model, prefix.random_rows(arm.model, K, 1)), tokenizer, TEXTS, max_new_tokens=2)
    assert len(compilations) == 2


CHANGES = {
    "a weight written to": lambda arm: arm.model.lm_head.weight.mul_(1.5),
    "a row written to": lambda arm: arm.prefix.rows.mul_(2),
    "a loaded state": lambda arm: arm.model.load_state_dict({k: v * 1.1 for k, v in arm.model.state_dict().items()}),
    "a replaced weight": lambda arm: setattr(
        arm.model.model.layers[0].mlp.up_proj, "weight", torch.nn.Parameter(torch.ones(64, 32), requires_grad=False)
    ),
    "another type": lambda arm: arm.model.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_model_or_prefix_is_compiled_again(arm, change):
    before = compiled.compiled(arm)
    assert compiled.compiled(arm) is before
    CHANGES[change](arm)
    fresh = compile_rows(arm.model, arm.prefix.rows)
    again = compiled.compiled(arm)
    assert again is not before
    assert all(torch.equal(a, b) for x, y in zip(again, fresh, strict=True) for a, b in zip(x, y, strict=True))


def test_nothing_is_kept_for_adapters_that_can_be_switched(arm):
    arm.model.peft_config = {}
    assert compiled.compiled(arm) is not compiled.compiled(arm)


def test_kept_keys_and_values_die_with_their_model_and_prefix(tokenizer):
    model = tiny("llama")
    arm = Arm("soft", model, prefix.random_rows(model, K))
    keys = weakref.ref(compiled.compiled(arm)[0][0])
    arm = Arm("none", model, prefix.none(model))
    gc.collect()
    assert keys() is None, "the prefix is gone"
    keys = weakref.ref(compiled.compiled(Arm("soft", model, kept := prefix.random_rows(model, K)))[0][0])
    del arm, model
    gc.collect()
    assert keys() is None and kept.k == K, "the model is gone"


def test_the_harness_takes_the_prefix_that_is_kept(arm, tokenizer, compilations):
    pytest.importorskip("lm_eval")
    from ctplab.measure.tasks.harness import as_lm, only_errors

    ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=2)
    with only_errors():
        for batch in (1, 2):
            as_lm(arm, tokenizer, batch)
    assert len(compilations) == 1
