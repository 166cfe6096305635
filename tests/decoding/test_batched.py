"""The lean loop says what ``generate`` says, on every architecture, and tells when each token is there."""

import pytest
import torch
from conftest import scripted

import ctplab as ctp
from ctplab.atlas.questions import all_questions
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import Batch, before_end, end_tokens, left_padded, prepare
from ctplab.measure.tasks.closed_book import MAX_ANSWER, answers
from ctplab.prompts import compiled, prefix
from ctplab.prompts.arms import Arm

NEW = 6
PADDED = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
ALIKE = ["The capital of Peru", "The river of Spain", "The capital of Spain"]  # of one length


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_it_says_what_generate_says(any_model, tokenizer, kind, front):
    """Padded and unpadded, and concatenated as well as compiled."""
    arm = front(any_model, kind)
    for texts in (PADDED, ALIKE):
        batch = prepare(arm, tokenizer, texts, NEW)
        assert bool(batch.mask.all()) == (texts is ALIKE)
        wanted = [answer.text for answer in ctp.generate(arm, tokenizer, texts, max_new_tokens=NEW)]
        for concatenate in (False, True):
            new = greedy(arm, batch, NEW, concatenate=concatenate).tolist()
            kept = [before_end(row, end_tokens(any_model)) for row in new]
            assert tokenizer.batch_decode(kept, skip_special_tokens=True) == wanted
    assert len({tuple(row) for row in new}) > 1, "all texts have one answer: the test is blind"


def test_keys_and_values_are_a_prefix_too_but_have_no_rows(llama):
    rows = prefix.random_rows(llama, 5)
    with torch.no_grad():
        kv = prefix.KVPrefix("kv", tuple(compiled.compile_rows(llama, rows.rows)))
    batch = left_padded([[5, 6, 7], [8, 9]], llama, 0)
    assert torch.equal(greedy(Arm("a", llama, kv), batch, NEW), greedy(Arm("b", llama, rows), batch, NEW))
    with pytest.raises(ctp.InputError, match="'kv' is keys and values"):
        greedy(Arm("a", llama, kv), batch, NEW, concatenate=True)


@pytest.mark.parametrize("concatenate", [False, True])
def test_a_row_repeats_its_end_and_the_loop_ends_with_the_last_row(model, tokenizer, concatenate):
    arm = Arm("soft", model, prefix.random_rows(model, 5))
    batch = prepare(arm, tokenizer, PADDED, 12)
    free = greedy(arm, batch, 12, concatenate=concatenate).tolist()
    ends = [free[0][4], free[1][2], free[2][1]]
    first = [next(i for i, token in enumerate(row) if token in ends) for row in free]
    new = greedy(arm, batch, 12, ends=ends, concatenate=concatenate).tolist()
    for row, whole, at in zip(new, free, first, strict=True):
        assert row == whole[: at + 1] + [whole[at]] * (max(first) - at)


@pytest.mark.parametrize("concatenate", [False, True])
def test_it_tells_when_each_token_is_there(llama, concatenate):
    """0 once the prefix is compiled and before any pass over text; then n after the n-th pass."""
    arm = Arm("soft", llama, prefix.random_rows(llama, 5))
    passes, told = [], []
    batch = Batch(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    llama.register_forward_hook(lambda *_: passes.append(1))
    greedy(arm, batch, 4, concatenate=concatenate, on_tokens=lambda n: told.append((n, len(passes))))
    compiling = 0 if concatenate else 1
    assert told == [(n, n + compiling) for n in range(5)]


def test_what_does_not_fit_is_refused(llama):
    arm = Arm("soft", llama, prefix.random_rows(llama, 7))
    batch = left_padded([[5, 6, 7]], llama, 0)
    assert greedy(arm, batch, 246).shape == (1, 246), "a full context is no overflow"
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        greedy(arm, batch, 247)
    wide = Arm("wide", llama, prefix.Prefix("wide", torch.zeros(3, 48)))
    for concatenate in (False, True):
        with pytest.raises(ctp.InputError, match="made for another model"):
            greedy(wide, batch, 2, concatenate=concatenate)


def test_nan_is_refused_even_if_it_passes(llama):
    """One broken pass is enough, and is found without waiting for it."""
    arm, batch = Arm("none", llama, prefix.none(llama)), left_padded([[5, 6, 7]], llama, 0)
    passes = []

    def break_second(module, inputs, out):
        passes.append(1)
        if len(passes) == 2:
            out.logits[..., 9] = torch.nan

    llama.register_forward_hook(break_second)
    with pytest.raises(ctp.InputError, match="NaN"):
        greedy(arm, batch, 4)
    passes.clear()
    with pytest.raises(ctp.InputError, match="NaN"):
        ctp.generate(arm, FakeTokenizer(), ["5 6 7"], max_new_tokens=4)
    passes.clear()
    with pytest.raises(ctp.InputError, match="NaN"):
        list(ctp.stream(arm, FakeTokenizer(), "5 6 7", max_new_tokens=4))


class FakeTokenizer:
    """Words are ids."""

    pad_token_id = eos_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_closed_book_answers_are_the_lines_that_generate_gives(tokenizer, kind, front):
    """On the embedded model, whose answers are words, at any size of batch."""
    model, tok = ctp.load("atlas", device="cpu")
    arm, questions = front(model, kind), all_questions()[::300]
    lines = ctp.generate(arm, tok, [q.prompt for q in questions], max_new_tokens=MAX_ANSWER, stop="\n")
    for batch in (2, 256):
        assert answers(arm, tok, questions, batch=batch) == [line.text.strip() for line in lines]


@pytest.mark.parametrize("first", ["newline", "end"])
def test_what_comes_after_an_answer_is_no_part_of_it(llama, tokenizer, first):
    """Whether a line break or the end token closes it, and though batch mates go on."""
    questions = all_questions()[:3]
    newline, word, end = tokenizer("\n", add_special_tokens=False)["input_ids"][-1], 500, 7
    llama.generation_config.eos_token_id = end
    arm = Arm("none", llama, prefix.none(llama))
    with scripted(llama, [word, newline if first == "newline" else end, word]):
        assert answers(arm, tokenizer, questions) == [tokenizer.decode([word]).strip()] * 3
    with scripted(llama, [newline if first == "newline" else end, word]):
        assert answers(arm, tokenizer, questions) == [""] * 3
