"""Prefixes: compiled equals concatenated, nothing is dropped, masks and positions are right."""

import pytest
import torch

import ctplab as ctp
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import logits_after

K = 7


@pytest.fixture
def ids(web):
    return web.test.windows[:3]


@torch.no_grad()
def test_compiled_prefix_equals_concatenated_embeddings(model, ids):
    rows = prefix.random_rows(model, K).rows
    compiled = logits_after(model, compile_rows(model, rows), ids)
    joined = torch.cat([rows.expand(3, -1, -1), embed(model, ids)], 1)
    plain = model(inputs_embeds=joined, use_cache=False).logits[:, K:]
    # fp32, two orders of summation in attention
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(compiled, model(ids, use_cache=False).logits, atol=1e-2), "the prefix has no effect"


def test_compiling_is_differentiable_and_equals_the_concatenated_gradient(model, ids):
    grads = []
    for compiled in (True, False):
        rows = prefix.random_rows(model, K).rows.clone().requires_grad_(True)
        if compiled:
            logits = logits_after(model, compile_rows(model, rows), ids)
        else:
            joined = torch.cat([rows.expand(3, -1, -1), embed(model, ids)], 1)
            logits = model(inputs_embeds=joined, use_cache=False).logits[:, K:]
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        grads.append(rows.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)  # fp32, other order of summation


def test_constructors_are_rows_of_the_vocabulary(model, tokenizer):
    made = [prefix.hard(model, tokenizer), prefix.bos(model, tokenizer), prefix.first_rows(model, 5)]
    made += [prefix.random_rows(model, 5), prefix.text_rows(model, tokenizer, "Lima", 5)]
    for p in made:
        assert p.rows.shape == (len(p.ids), embeddings(model).shape[1])
        torch.testing.assert_close(p.rows, embed(model, torch.tensor(p.ids)), rtol=0, atol=0)
    assert prefix.none(model).k == 0


def test_context_overflow_and_empty_text_are_refused(llama, tokenizer):
    arm = ctp.Arm("soft", llama, prefix.random_rows(llama, 250))
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        ctp.generate(arm, tokenizer, ["The capital of Peru is"], max_new_tokens=20)
    with pytest.raises(ctp.InputError, match="empty"):
        ctp.generate(arm, tokenizer, ["  "])
    with pytest.raises(ctp.InputError, match="empty"):
        prefix.hard(llama, tokenizer, " ")
