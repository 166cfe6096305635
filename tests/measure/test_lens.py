"""The lens against definitions written out in float64, and its bookkeeping."""

import copy
import math

import pytest
import torch

import ctplab as ctp
from ctplab.measure.lens import changes, hurt_and_helped, lens
from ctplab.models.anatomy import embed
from ctplab.prompts import prefix
from ctplab.text.reading import TEMPLATE, encode

TEXT = "Where is Tulsa? It is a city in Oklahoma."


@pytest.fixture
def pair(llama):
    """A full model and one that was hurt: noise on every weight matrix."""
    from conftest import tiny

    hurt = tiny("llama")
    torch.manual_seed(1)
    for name, parameter in hurt.named_parameters():
        if "proj" in name:
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return llama, hurt


@torch.no_grad()
def test_surprisal_and_kl_are_their_definitions(pair, tokenizer):
    full, hurt = pair
    soft = prefix.random_rows(hurt, 5)
    seen = lens(ctp.arms(full, hurt, soft=soft), tokenizer, TEXT, top=4)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and seen.start == "<s>"
    assert seen.ids == ids and tokenizer.decode(ids) == "".join(seen.tokens)

    def p(model, rows):  # float64 probabilities behind concatenated rows
        joined = torch.cat([rows, embed(model, torch.tensor(ids))])[None].double()
        return model.double()(inputs_embeds=joined, use_cache=False).logits[0, len(rows) :].softmax(-1)

    none = torch.zeros(0, 32)
    wanted = {"full": p(full, none), "compressed": p(hurt, none), "soft": p(hurt, soft.rows)}
    for name, probabilities in wanted.items():
        arm = seen.arms[name]
        assert arm.surprisal[0] is None and arm.kl[0] is None and arm.alternatives[0] == []
        for t in range(1, len(ids)):
            row, base = probabilities[t - 1], wanted["full"][t - 1]
            # fp32 forward against float64
            assert arm.surprisal[t] == pytest.approx(-math.log(row[ids[t]]), rel=1e-3, abs=1e-4)
            assert arm.kl[t] == pytest.approx(float((base * (base / row).log()).sum()), rel=2e-3, abs=1e-4)
            best = row.topk(4)
            assert [a[0] for a in arm.alternatives[t]] == [tokenizer.decode([i]) for i in best.indices]
            assert [a[1] for a in arm.alternatives[t]] == pytest.approx(best.values.tolist(), rel=1e-3)
    assert max(seen.arms["full"].kl[1:]) == 0


def test_its_surprisals_add_up_to_the_perplexity(model, tokenizer):
    arm = ctp.Arm("soft", model, prefix.random_rows(model, 5))
    seen = lens([arm], tokenizer, TEXT)
    score = ctp.perplexity(arm, torch.tensor([seen.ids]))
    assert seen.arms["soft"].kl is None, "without a full arm there is nothing to diverge from"
    assert sum(seen.arms["soft"].surprisal[1:]) == pytest.approx(score.nll, rel=1e-5)  # fp32 sums


def test_hurt_and_helped_are_sorted_differences(pair, tokenizer):
    full, hurt = pair
    seen = lens(ctp.arms(full, hurt, soft=prefix.random_rows(hurt, 5)), tokenizer, TEXT)
    moved = hurt_and_helped(seen, 3)
    for name, (first, second) in {"hurt": ("compressed", "full"), "helped": ("compressed", "soft")}.items():
        a, b = (seen.arms[arm].surprisal[1:] for arm in (first, second))
        largest = sorted((x - y for x, y in zip(a, b, strict=True)), reverse=True)[:3]
        assert [change.nats for change in moved[name]] == [value for value in largest if value > 0]
        assert all(change.token == seen.tokens[change.position] for change in moved[name])
    assert len(changes(seen, "full", "soft")) == len(seen.ids) - 1


def test_bad_input_gets_one_line(llama, tokenizer):
    arm = ctp.Arm("soft", llama, prefix.random_rows(llama, 5))
    for arms, text, reason in (
        ([arm], "", "at least two tokens"),
        ([arm, arm], TEXT, "a name of its own"),
        ([arm], TEXT * 60, "the model takes 256"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            lens(arms, tokenizer, text)
    with pytest.raises(ctp.InputError, match="no arm called 'compressed'"):
        hurt_and_helped(lens([arm], tokenizer, TEXT))


def test_a_chat_template_is_used_if_asked_for(llama, tokenizer):
    """What is asked, up to where the answer begins: the very ids that a conversation sends."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    arm = ctp.Arm("full", llama, prefix.none(llama))
    seen = lens([arm], chat, TEXT, raw=False)
    assert seen.ids == encode(chat, TEXT) and "".join(seen.tokens).endswith("assistant: ") and seen.start == TEMPLATE
    assert lens([arm], chat, TEXT).ids == encode(chat, TEXT, raw=True) == encode(tokenizer, TEXT)
