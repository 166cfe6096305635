"""Prefixes: compiled equals concatenated, nothing is dropped, masks and positions are right."""

import pytest
import torch

import ctplab as ctp
from ctplab.decoding.generate import _encode, greedy
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


def test_a_text_answers_the_same_alone_and_in_a_padded_batch(model, tokenizer):
    texts = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
    arm = ctp.Arm("soft", model, prefix.random_rows(model, K))
    together = [a.text for a in ctp.generate(arm, tokenizer, texts, max_new_tokens=8)]
    alone = [ctp.generate(arm, tokenizer, [text], max_new_tokens=8)[0].text for text in texts]
    assert together == alone


@pytest.mark.parametrize("k", [0, K])
def test_the_lean_loop_gives_what_generate_gives(model, tokenizer, k):
    arm = ctp.Arm("x", model, prefix.random_rows(model, k) if k else prefix.none(model))
    inputs = _encode(arm, tokenizer, ["Q: Where is Tulsa?\nA:", "The capital"])
    lean = greedy(arm, inputs["input_ids"], inputs["attention_mask"], 6)
    texts = [
        answer.text
        for answer in ctp.generate(arm, tokenizer, ["Q: Where is Tulsa?\nA:", "The capital"], max_new_tokens=6)
    ]
    for row, text in zip(lean, texts, strict=True):
        ends = (row == 2).nonzero().flatten().tolist()
        assert tokenizer.decode(row[: ends[0]] if ends else row, skip_special_tokens=True) == text


def test_no_token_of_the_text_is_dropped(model, tokenizer):
    """Greedy text behind a prefix equals repeated full forwards of the concatenation."""
    arm = ctp.Arm("soft", model, prefix.random_rows(model, K))
    ids = tokenizer("The capital of Peru is", add_special_tokens=False, return_tensors="pt")["input_ids"]
    new = []
    for _ in range(5):
        current = torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)
        joined = torch.cat([arm.prefix.rows[None], embed(model, current)], 1)
        new.append(int(model(inputs_embeds=joined, use_cache=False).logits[0, -1].argmax()))
    answer = ctp.generate(arm, tokenizer, ["The capital of Peru is"], max_new_tokens=5)[0]
    stop = new.index(2) if 2 in new else len(new)
    assert answer.text == tokenizer.decode(new[:stop], skip_special_tokens=True)


def test_streaming_gives_the_same_text(llama, tokenizer):
    arm = ctp.Arm("soft", llama, prefix.random_rows(llama, K))
    whole = ctp.generate(arm, tokenizer, ["The capital"], max_new_tokens=8)[0].text
    assert "".join(ctp.stream(arm, tokenizer, "The capital", max_new_tokens=8)) == whole


def test_closing_a_stream_stops_the_model(llama, tokenizer):
    calls = []
    llama.register_forward_hook(lambda *_: calls.append(1))
    pieces = ctp.stream(ctp.Arm("x", llama, prefix.none(llama)), tokenizer, "The capital", max_new_tokens=200)
    next(pieces)
    pieces.close()  # joins the worker: it has ended when this returns
    assert len(calls) < 150


def test_an_error_while_streaming_reaches_the_reader(llama, tokenizer):
    def broken(*_):
        raise RuntimeError("out of memory")

    llama.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(ctp.stream(ctp.Arm("x", llama, prefix.none(llama)), tokenizer, "The capital"))


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
