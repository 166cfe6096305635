"""What stands behind a prefix: which ids a text becomes, how a batch is padded, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

import ctplab as ctp
from ctplab.decoding.inputs import (
    behind_prefix,
    end_tokens,
    left_padded,
    padding_token,
    positions,
    prepare,
)
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.text.reading import encode

TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]


@pytest.fixture
def bare(llama):
    return Arm("none", llama, prefix.none(llama))


@pytest.fixture
def soft(llama):
    return Arm("soft", llama, prefix.random_rows(llama, 7))


def test_texts_end_together_and_the_mask_counts_their_own_tokens(soft, tokenizer):
    batch = prepare(soft, tokenizer, TEXTS, 4)
    assert batch.mask.sum(1).tolist() == [len(encode(tokenizer, text)) for text in TEXTS]
    for text, ids, mask in zip(TEXTS, batch.ids, batch.mask, strict=True):
        assert ids[mask.bool()].tolist() == encode(tokenizer, text)
        assert mask.tolist() == sorted(mask.tolist()), "padding stands on the left"
        assert (ids[mask == 0] == tokenizer.pad_token_id).all()


def test_positions_count_prefix_and_text_but_no_padding(llama):
    batch = left_padded([[5, 6, 7, 8], [9, 5]], llama, 3)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [3, 3, 9, 5]]
    mask = behind_prefix(batch.mask, 2)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]
    for row, own in zip(positions(mask), mask.bool(), strict=True):
        assert row[own].tolist() == list(range(int(own.sum())))
    assert positions(batch.mask).min() == 0, "a model has no position before the first"


@pytest.mark.parametrize(("given", "ends"), [(None, []), (2, [2]), ([2, 5], [2, 5])])
def test_end_tokens_are_none_one_or_several(llama, given, ends):
    llama.generation_config.eos_token_id = given
    assert end_tokens(llama) == ends


@pytest.mark.parametrize(("pad", "end", "chosen"), [(0, 2, 0), (7, None, 7), (None, 2, 2), (None, None, 0)])
def test_the_padding_token_may_be_missing(pad, end, chosen):
    assert padding_token(SimpleNamespace(pad_token_id=pad, eos_token_id=end)) == chosen


def test_padding_is_never_seen(model, tokenizer):
    """Any id will do: the answers are the same."""
    from ctplab.decoding.batched import greedy

    arm = Arm("soft", model, prefix.random_rows(model, 7))
    rows = [encode(tokenizer, text) for text in TEXTS]
    answers = [greedy(arm, left_padded(rows, model, padding), 4) for padding in (0, 2, 77)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_bad_input_is_refused(bare, soft, tokenizer):
    for texts, new_tokens, reason in (
        ([], 1, "empty"),
        (["a", " \n"], 1, "the text is empty"),
        (["a"], 0, "max_new_tokens must be at least 1"),
        (["a", "b c"], 250, "the model takes 256"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            prepare(soft, tokenizer, texts, new_tokens)
    n = 256 - len(encode(tokenizer, "a"))
    assert prepare(bare, tokenizer, ["a"], n).ids.shape[1] + n == 256, "a full context is no overflow"
