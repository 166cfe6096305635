"""Answers as targets: the masks mark them and nothing else, and filling changes no number."""

import pytest
import torch

import ctplab as ctp
from ctplab.prompts import prefix
from ctplab.text.answered import answered
from ctplab.text.reading import encode, words

QUESTIONS = ["Q: Where is Tulsa?\nA:", "Q: What is the symbol of gold, the metal?\nA:", "Q: Who?\nA:"]
ANSWERS = ["Oklahoma", "Au", ""]


def test_the_answers_are_the_targets(tokenizer):
    split = answered(tokenizer, QUESTIONS, ANSWERS, raw=True)
    assert split.windows.shape[0] == 2  # the third said nothing
    for i in range(2):
        ids, said = encode(tokenizer, QUESTIONS[i], raw=True), words(tokenizer, f" {ANSWERS[i]}")
        assert split.windows[i, : len(ids) + len(said)].tolist() == ids + said
        assert split.windows[i][split.window_masks[i]].tolist() == said
    with pytest.raises(ctp.InputError, match="no question has an answer"):
        answered(tokenizer, QUESTIONS, ["", " ", ""], raw=True)


def test_filling_changes_nothing(llama, tokenizer):
    full, arm = ctp.Arm("full", llama, prefix.none(llama)), ctp.Arm("soft", llama, prefix.random_rows(llama, 5))
    together = ctp.fidelity(arm, full, answered(tokenizer, QUESTIONS, ANSWERS, raw=True))
    alone = [
        ctp.fidelity(arm, full, answered(tokenizer, [q], [a], raw=True))
        for q, a in zip(QUESTIONS[:2], ANSWERS[:2], strict=True)
    ]
    # fp32, in batches of other shapes
    torch.testing.assert_close(together.kl, torch.cat([found.kl for found in alone]), rtol=1e-4, atol=1e-7)
