"""One way to put a text behind an arm: its ids, and what the lens and generation make of it."""

import copy

import pytest
import torch
from conftest import tiny
from tokenizers.processors import TemplateProcessing

import ctplab as ctp
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import left_padded, prepare
from ctplab.disk import data_dir
from ctplab.measure.tasks.harness import as_lm
from ctplab.prompts import prefix
from ctplab.text.reading import encode, start_ids, start_of, words

TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
#: Post-processors as tokenizers have them: what they write in front of a text, and behind it.
WRITES = {"start": "<s> $A", "nothing": "$A", "end": "$A </s>", "both": "<s> $A </s>"}


def writing(tokenizer, single):
    """A copy of the tokenizer that writes ``single`` by default."""
    made = copy.deepcopy(tokenizer)
    special = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=special
    )
    return made


@pytest.fixture(params=WRITES)
def any_tokenizer(request, tokenizer):
    return writing(tokenizer, WRITES[request.param])


@pytest.fixture(scope="module")
def arms(tokenizer):
    """The arms of the embedded world, with the shipped compressed model and prompt."""
    full, _ = ctp.load("atlas", device="cpu")
    small, _ = ctp.load(data_dir() / "w4-s55", device="cpu")
    saved = ctp.load_prompt(data_dir() / "prompt")
    return ctp.arms(full, small, "Please answer.", saved.prefix, controls=True, tokenizer=tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_the_start_is_a_setting_and_no_end_token_is_written(any_tokenizer, text):
    plain = any_tokenizer(text, add_special_tokens=False)["input_ids"]
    by_default = any_tokenizer(text)["input_ids"]
    own = [any_tokenizer.bos_token_id] if by_default[0] == any_tokenizer.bos_token_id else []
    assert encode(any_tokenizer, text) == own + plain, "auto: as the tokenizer does, but the text may go on"
    assert encode(any_tokenizer, text, start="token") == [any_tokenizer.bos_token_id, *plain]
    assert encode(any_tokenizer, text, start="none") == plain == words(any_tokenizer, text)
    assert start_of(any_tokenizer) == ("<s>" if own else "none") and start_of(any_tokenizer, "token") == "<s>"


def test_a_text_that_begins_with_the_start_token_gets_no_second_one(tokenizer):
    assert encode(tokenizer, "<s>The capital") == encode(tokenizer, "The capital")


def test_bad_settings_are_refused(tokenizer):
    with pytest.raises(ctp.InputError, match="start must be one of auto, token, none, not 'bos'"):
        encode(tokenizer, "a", start="bos")
    without = copy.deepcopy(tokenizer)
    without.bos_token = without.eos_token = None
    without.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(ctp.InputError, match="no start token; use start='none'"):
        start_ids(without, "token")
    with pytest.raises(ctp.InputError, match="the text is empty"):
        encode(tokenizer, " \n")


@pytest.mark.parametrize("start", ["auto", "token", "none"])
def test_every_arm_reads_the_same_text(any_tokenizer, start):
    model = tiny("llama")
    kinds = [prefix.none(model), prefix.random_rows(model, 4), prefix.hard(model, any_tokenizer, "look closely")]
    rows = [prepare(ctp.Arm(p.name, model, p), any_tokenizer, TEXTS, 4, start=start) for p in kinds]
    for batch in rows[1:]:
        assert torch.equal(batch.ids, rows[0].ids) and torch.equal(batch.mask, rows[0].mask)
    assert kinds[2].ids is not None and kinds[2].ids[-1] != any_tokenizer.eos_token_id


@pytest.mark.parametrize("writes", ["start", "nothing"])
@pytest.mark.parametrize("start", ["auto", "token"])
def test_a_greedy_answer_is_the_lenss_first_choice_at_every_place(arms, tokenizer, writes, start):
    """For every arm, by all ways to decode, on a tokenizer with and one without a start token."""
    reader = writing(tokenizer, WRITES[writes])
    text = "Q: Which state is Long Beach in?\nA:"
    asked = encode(reader, text, start=start)
    for arm in arms:
        new = greedy(arm, left_padded([asked], arm.model, 0), 6)[0].tolist()
        said = reader.decode(new)
        settings = {"max_new_tokens": 6, "start": start}
        assert ctp.generate(arm, reader, [text], **settings)[0].text == said, arm.name
        assert "".join(ctp.stream(arm, reader, text, **settings)) == said, arm.name
        seen = ctp.lens([arm], reader, text + said, top=1, start=start)
        assert seen.ids == asked + new, "this text reads back as it was written"
        first = [choices[0][0] for choices in seen.arms[arm.name].alternatives[len(asked) :]]
        assert first == [reader.decode([i]) for i in new], arm.name


def test_lm_eval_reads_texts_as_every_arm_does(any_tokenizer):
    """Requests, batches to continue, and the continuations that it asks for by themselves."""
    pytest.importorskip("lm_eval", reason="needs lm-eval (pip install 'ctplab[tasks]')")
    model = tiny("llama")
    for front in (prefix.none(model), prefix.random_rows(model, 4)):
        lm = as_lm(ctp.Arm("x", model, front), any_tokenizer, 2)
        for text in TEXTS:
            assert lm.tok_encode(text) == encode(any_tokenizer, text)
            assert lm.tok_encode(text, add_special_tokens=False) == words(any_tokenizer, text)
        ids, mask = lm.tok_batch_encode(TEXTS)
        for text, row, own in zip(TEXTS, ids, mask, strict=True):
            assert row[own.bool()].tolist() == encode(any_tokenizer, text) and own[-1] == 1
