"""Answers token by token equal those of ``generate``, and nothing runs between two pieces."""

import pytest
import torch

from ctplab.decoding.generate import generate
from ctplab.decoding.sampler import GREEDY, Sampler
from ctplab.decoding.steps import steps
from ctplab.errors import InputError
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import none, random_rows

TEXT = "The river runs through the town"


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=5)])
@pytest.mark.parametrize("k", [0, 7])
def test_pieces_join_to_the_answer_of_generate(model, tokenizer, k, sampler):
    model.generation_config.eos_token_id = 2
    arm = Arm("arm", model, random_rows(model, k) if k else none(model))
    pieces = list(steps(arm, tokenizer, TEXT, max_new_tokens=12, sampler=sampler))
    expected = generate(arm, tokenizer, [TEXT], max_new_tokens=12, sampler=sampler)[0].text
    assert "".join(pieces) == expected.removesuffix("\ufffd")


def test_one_forward_a_piece_and_none_after_closing(llama, tokenizer):
    calls = []
    llama.register_forward_hook(lambda *_: calls.append(1))
    counted = []
    pieces = steps(Arm("a", llama, none(llama)), tokenizer, TEXT, max_new_tokens=20, on_token=lambda: counted.append(1))
    assert not calls
    for n in range(1, 5):
        next(pieces)
        assert len(calls) == len(counted) == n
    pieces.close()
    assert len(calls) == 4


def test_stop_ends_before_the_stop_text(llama, tokenizer):
    arm = Arm("a", llama, none(llama))
    whole = "".join(steps(arm, tokenizer, TEXT, max_new_tokens=20))
    stop = whole[len(whole) // 2 :][:3]
    assert "".join(steps(arm, tokenizer, TEXT, max_new_tokens=20, stop=stop)) == whole.partition(stop)[0]


def test_bad_input_comes_at_once(llama, tokenizer):
    with pytest.raises(InputError, match="positions"):
        steps(Arm("a", llama, none(llama)), tokenizer, TEXT, max_new_tokens=10_000)
    with pytest.raises(InputError, match="empty"):
        steps(Arm("a", llama, none(llama)), tokenizer, " ")
    assert torch.is_grad_enabled()
