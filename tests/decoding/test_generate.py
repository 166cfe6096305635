"""``generate``: nothing of a text is lost behind a prefix, batch mates do not matter, and the sampler alone decides."""

import copy

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config, scripted

import ctplab as ctp
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import prepare
from ctplab.models.anatomy import embed
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import logits_after
from ctplab.prompts.prefix import Prefix

K = 7
TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]


@pytest.fixture
def arm(llama):
    return Arm("soft", llama, prefix.random_rows(llama, K))


@torch.no_grad()
def reference(arm, ids: list[int], steps: int, penalty: float) -> list[int]:
    """Greedy with the penalty of CTRL (section 4.1): full forwards of the concatenation, token by token."""
    seen = list(ids)
    for _ in range(steps):
        joined = torch.cat([arm.prefix.rows[None], embed(arm.model, torch.tensor([seen]))], 1)
        scores = arm.model(inputs_embeds=joined, use_cache=False).logits[0, -1].double()
        for token in set(seen):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        seen.append(int(scores.argmax()))
    return seen[len(ids) :]


def test_the_repetition_penalty_sees_the_text_and_no_padding(model, tokenizer):
    """In a padded batch, behind a prefix, on every family. The padding token is id 0, and no text has it."""
    arm = Arm("soft", model, prefix.random_rows(model, K))
    sampler = ctp.Sampler(repetition_penalty=3.0)
    answers = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6, sampler=sampler, start="none")
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        want = reference(arm, ids, 6, 3.0)
        want = want[: want.index(2)] if 2 in want else want
        assert answer.text == tokenizer.decode(want, skip_special_tokens=True)
    plain = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6, start="none")
    assert [a.text for a in plain] != [a.text for a in answers], "the penalty changes nothing here: the test is blind"


def test_a_text_answers_the_same_alone_and_in_a_padded_batch(model, tokenizer):
    texts = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
    arm = ctp.Arm("soft", model, prefix.random_rows(model, K))
    together = [a.text for a in ctp.generate(arm, tokenizer, texts, max_new_tokens=8)]
    alone = [ctp.generate(arm, tokenizer, [text], max_new_tokens=8)[0].text for text in texts]
    assert together == alone


def test_no_token_of_the_text_is_dropped(model, tokenizer):
    """Greedy text behind a prefix equals repeated full forwards of the concatenation."""
    arm = ctp.Arm("soft", model, prefix.random_rows(model, K))
    ids = tokenizer("The capital of Peru is", return_tensors="pt")["input_ids"]
    new = []
    for _ in range(5):
        current = torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)
        joined = torch.cat([arm.prefix.rows[None], embed(model, current)], 1)
        new.append(int(model(inputs_embeds=joined, use_cache=False).logits[0, -1].argmax()))
    answer = ctp.generate(arm, tokenizer, ["The capital of Peru is"], max_new_tokens=5)[0]
    stop = new.index(2) if 2 in new else len(new)
    assert answer.text == tokenizer.decode(new[:stop], skip_special_tokens=True)


def test_tokens_are_counted_without_padding(arm, tokenizer):
    """Where there is no padding token, the end token pads; counts stay those of the texts alone."""
    together = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=12)
    alone = [ctp.generate(arm, tokenizer, [text], max_new_tokens=12)[0] for text in TEXTS]
    assert [a.n_tokens for a in together] == [a.n_tokens for a in alone]


def test_an_end_token_is_not_counted(llama, tokenizer):
    """Whether padding has an id of its own or not; and only as many tokens are counted as the text has."""
    arm = Arm("none", llama, prefix.none(llama))
    for ends, padding in (([5], 0), ([5], 5), ([9, 5], 0)):
        llama.generation_config.eos_token_id = ends
        tokenizer = copy.copy(tokenizer)
        tokenizer.pad_token_id = padding
        with scripted(llama, [8, 7, 5, 8]):
            assert ctp.generate(arm, tokenizer, [TEXTS[0]], max_new_tokens=4)[0].n_tokens == 2
        with scripted(llama, [8, 7, 8, 7]):
            assert ctp.generate(arm, tokenizer, [TEXTS[0]], max_new_tokens=4)[0].n_tokens == 4


OWN_SETTINGS = {
    "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "min_new_tokens": 9, "suppress_tokens": [8],
    "bad_words_ids": [[8]], "num_beams": 2, "do_sample": True, "temperature": 9.0,
}  # fmt: skip


@pytest.mark.parametrize("setting", OWN_SETTINGS)
def test_a_models_own_settings_do_not_choose_tokens(arm, tokenizer, setting):
    """The sampler does, so that every way to decode agrees. Hub models bring such settings."""
    arm.model.generation_config.eos_token_id = 5
    with scripted(arm.model, [8, 8, 8, 5, 7]):
        plain = ctp.generate(arm, tokenizer, [TEXTS[0]], max_new_tokens=8)[0].text
    assert plain == tokenizer.decode([8, 8, 8])
    setattr(arm.model.generation_config, setting, OWN_SETTINGS[setting])
    with scripted(arm.model, [8, 8, 8, 5, 7]):
        assert ctp.generate(arm, tokenizer, [TEXTS[0]], max_new_tokens=8)[0].text == plain


@pytest.mark.parametrize("family", ["MistralConfig", "Gemma2Config", "Gemma3TextConfig"])
@torch.no_grad()
def test_sliding_windows_are_right_or_refused(family, tokenizer):
    """A window of 8: seven rows and a text that slides past them are right, eight rows are refused.

    Such windows count padding between prefix and text as positions, so a mixed batch needs care.
    """
    config = MORE_FAMILIES[family] | {"sliding_window": 8}
    model = from_config(getattr(transformers, family)(**config))
    ids = torch.arange(24).view(2, 12) * 7 % 2000 + 5
    rows = prefix.random_rows(model, 7).rows
    joined = torch.cat([rows.expand(2, -1, -1), embed(model, ids)], 1)
    want = model(inputs_embeds=joined, use_cache=False).logits[:, 7:]
    # fp32, two orders of summation in attention
    torch.testing.assert_close(logits_after(model, compile_rows(model, rows), ids), want, rtol=1e-4, atol=1e-4)
    arm = Arm("soft", model, Prefix("soft", rows))
    answers = [
        [a.text for a in ctp.generate(arm, tokenizer, texts, max_new_tokens=6)]
        for texts in (TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[2:])
    ]
    assert answers[0] == answers[1] + answers[2] + answers[3]
    batch = prepare(arm, tokenizer, TEXTS, 6)
    with pytest.raises(ctp.InputError, match="padding does not go with this model's attention window of 8"):
        greedy(arm, batch, 6)
    long = Arm("soft", model, prefix.random_rows(model, 8))
    with pytest.raises(ctp.InputError, match="attention window takes fewer than 8"):
        ctp.generate(long, tokenizer, TEXTS)
    with pytest.raises(ctp.InputError, match="attention window"):
        ctp.window_scores(long, ids)
