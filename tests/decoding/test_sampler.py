"""Sampling: draws follow the softmax, a nucleus is kept, a seed decides, and senseless settings are refused."""

import pytest
import torch

import ctplab as ctp
from ctplab.decoding.sampler import GREEDY, inverse_cdf, processors
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm

TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
HOT = ctp.Sampler(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)


@pytest.fixture
def arm(llama):
    return Arm("soft", llama, prefix.random_rows(llama, 7))


def test_drawing_follows_the_softmax():
    """Over an even grid of u, each token is drawn as often as its probability says, to one grid step."""
    scores = torch.tensor([[2.0, -1.0, 0.5, -torch.inf, 1.0], [0.0, 0.0, 0.0, 0.0, 9.0]])
    n = 2000
    drawn = torch.stack([inverse_cdf(scores, (i + 0.5) / n) for i in range(n)], 1)
    for row, p in zip(drawn, scores.softmax(-1), strict=True):
        assert ((torch.bincount(row, minlength=5) - n * p).abs() <= 1).all()
    for u in (0.0, 1 - 2**-53):
        assert not (inverse_cdf(scores, u) == 3).any(), "a token of probability zero"


def test_top_p_keeps_the_nucleus(arm, tokenizer):
    """With top_p below the largest probability only the greedy answer is left, at any temperature and seed."""
    greedy = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6)
    for seed in range(3):
        sampler = ctp.Sampler(temperature=2.0, top_p=1e-6, seed=seed)
        found = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6, sampler=sampler)
        assert [a.text for a in found] == [a.text for a in greedy]


def test_sampling_depends_on_its_seed_alone(arm, tokenizer):
    texts = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        texts.append([a.text for a in ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=12, sampler=HOT)])
        assert torch.equal(torch.get_rng_state(), state), "torch's global generator was used"
    assert texts[0] == texts[1]
    alone = [ctp.generate(arm, tokenizer, [text], max_new_tokens=12, sampler=HOT)[0].text for text in TEXTS]
    assert alone == texts[0], "batch mates or padding changed a sampled answer"
    other = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=12, sampler=ctp.Sampler(1.5, seed=4))
    assert [a.text for a in other] != texts[0]


@pytest.mark.parametrize("sampler", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_nan_is_refused_and_infinity_is_not(sampler):
    """A mask of -inf forbids a token; NaN says that the model is broken."""
    ids, scores = torch.tensor([[5, 6]]), torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf, 0.5, 0.0, 0.0]])
    assert processors(sampler, torch.ones_like(ids))(ids, scores.clone()).argmax() in (1, 2, 4, 5, 6)
    scores[0, 3] = torch.nan
    with pytest.raises(ctp.InputError, match=r"NaN.*dtype='float32'"):
        processors(sampler, torch.ones_like(ids))(ids, scores)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": 1e-30}, {"temperature": torch.nan}, {"temperature": torch.inf}, {"top_p": 0},
     {"top_p": 1.1}, {"top_p": torch.nan}, {"repetition_penalty": 0}, {"repetition_penalty": torch.nan}],
)  # fmt: skip
def test_samplers_that_make_no_sense_are_refused(settings):
    with pytest.raises(ctp.InputError, match=f"{next(iter(settings))} must be"):
        ctp.Sampler(**settings)
