"""Serving a prompt: compiled once, sampled as asked, streamed, stopped, and never stale."""

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config, tiny

import ctplab as ctp
from ctplab.decoding.generate import _encode, greedy, until
from ctplab.decoding.sampler import Draw, inverse_cdf
from ctplab.models.anatomy import embed
from ctplab.prompts import compiled, prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import logits_after
from ctplab.prompts.prefix import Prefix

K = 7
TEXTS = ["Q: Where is Tulsa?\nA:", "The capital", "Q: What is asparagus, and what is it used for in spring?\nA:"]
HOT = ctp.Sampler(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)


@pytest.fixture
def arm(llama):
    return Arm("soft", llama, prefix.random_rows(llama, K))


@pytest.fixture(scope="module")
def atlas():
    return ctp.load("atlas", device="cpu")


@pytest.fixture
def compilations(monkeypatch):
    """One entry for every prefix that is compiled."""
    calls, real = [], compiled.compile_prefix
    monkeypatch.setattr(compiled, "compile_prefix", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_prefix_is_compiled_once_for_all_that_is_generated(arm, tokenizer, compilations):
    for _ in range(2):
        ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=2)
        list(ctp.stream(arm, tokenizer, TEXTS[0], max_new_tokens=2))
    assert len(compilations) == 1
    ctp.generate(Arm("again", arm.model, arm.prefix), tokenizer, TEXTS, max_new_tokens=2)
    assert len(compilations) == 1, "another arm of the same model and prefix"
    ctp.generate(Arm("other", arm.model, prefix.random_rows(arm.model, K, 1)), tokenizer, TEXTS, max_new_tokens=2)
    assert len(compilations) == 2


CHANGES = {
    "a weight written to": lambda arm: arm.model.lm_head.weight.mul_(1.5),
    "a row written to": lambda arm: arm.prefix.rows.mul_(2),
    "a loaded state": lambda arm: arm.model.load_state_dict({k: v * 1.1 for k, v in arm.model.state_dict().items()}),
    "a replaced weight": lambda arm: setattr(
        arm.model.model.layers[0].mlp.up_proj, "weight", torch.nn.Parameter(torch.ones(64, 32), requires_grad=False)
    ),
    "another type": lambda arm: arm.model.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_model_or_prefix_is_compiled_again(arm, change):
    before = compiled.compiled(arm)
    assert compiled.compiled(arm) is before
    CHANGES[change](arm)
    fresh = compile_rows(arm.model, arm.prefix.rows)
    again = compiled.compiled(arm)
    assert again is not before
    assert all(torch.equal(a, b) for x, y in zip(again, fresh, strict=True) for a, b in zip(x, y, strict=True))


def test_nothing_is_kept_for_adapters_that_can_be_switched(arm):
    arm.model.peft_config = {}
    assert compiled.compiled(arm) is not compiled.compiled(arm)


def test_kept_keys_and_values_die_with_their_model_and_prefix(tokenizer):
    model = tiny("llama")
    arm = Arm("soft", model, prefix.random_rows(model, K))
    keys = weakref.ref(compiled.compiled(arm)[0][0])
    arm = Arm("none", model, prefix.none(model))
    gc.collect()
    assert keys() is None, "the prefix is gone"
    keys = weakref.ref(compiled.compiled(Arm("soft", model, kept := prefix.random_rows(model, K)))[0][0])
    del arm, model
    gc.collect()
    assert keys() is None and kept.k == K, "the model is gone"


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
    answers = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6, sampler=sampler)
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        want = reference(arm, ids, 6, 3.0)
        want = want[: want.index(2)] if 2 in want else want
        assert answer.text == tokenizer.decode(want, skip_special_tokens=True)
    plain = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=6)
    assert [a.text for a in plain] != [a.text for a in answers], "the penalty changes nothing here: the test is blind"


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


def test_streams_in_four_threads_give_what_each_gives_alone(llama, tokenizer):
    """Four arms of one model at once, as the dashboard runs them, each with its own seed."""
    arms = [Arm(str(i), llama, prefix.random_rows(llama, K, i)) for i in range(4)]
    samplers = [ctp.Sampler(1.5, seed=i) for i in range(4)]

    def text(i: int) -> str:
        return "".join(ctp.stream(arms[i], tokenizer, TEXTS[0], max_new_tokens=24, sampler=samplers[i]))

    alone = [text(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(4))) == alone
    streams = [ctp.stream(arms[i], tokenizer, TEXTS[0], max_new_tokens=24, sampler=samplers[i]) for i in range(4)]
    lockstep = zip(*zip_longest(*streams, fillvalue=""), strict=True)
    assert ["".join(pieces) for pieces in lockstep] == alone


@pytest.mark.parametrize("sampler", [ctp.Sampler(), HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stop", [None, "\n", " the", "e", "no such end"])
def test_a_stream_gives_what_generate_gives(atlas, sampler, stop):
    """On the embedded model, whose answers are words: with stop texts that span pieces, or never come."""
    model, tok = atlas
    arm = Arm("soft", model, prefix.random_rows(model, K))
    counted = []
    settings = {"max_new_tokens": 24, "sampler": sampler, "stop": stop}
    whole = ctp.generate(arm, tok, ["Next we went to"], **settings)[0]
    pieces = ctp.stream(arm, tok, "Next we went to", on_token=lambda: counted.append(1), **settings)
    assert "".join(pieces) == whole.text
    assert len(counted) in (whole.n_tokens, whole.n_tokens + 1), "an end token is generated, but is no text"


@pytest.mark.parametrize("stop", ["a", "ab", "aab", "bab", "c"])
def test_a_stop_is_found_however_the_text_is_cut(stop):
    text = "xaabaabab"
    for size in range(1, 10):
        pieces = (text[i : i + size] for i in range(0, len(text), size))
        assert "".join(until(pieces, stop)) == text.split(stop)[0]


@pytest.mark.parametrize("stop", [None, "no such end"])
def test_closing_a_stream_stops_the_model_within_two_tokens(arm, tokenizer, stop):
    forwards = []
    arm.model.register_forward_hook(lambda *_: forwards.append(1) or time.sleep(0.005))  # so it cannot be done before
    pieces = ctp.stream(arm, tokenizer, TEXTS[0], max_new_tokens=200, stop=stop)
    next(pieces)
    seen = len(forwards)
    pieces.close()  # returns when the model has stopped
    stopped = len(forwards)
    assert stopped - seen <= 2
    time.sleep(0.05)
    assert len(forwards) == stopped


def test_bad_input_is_refused_before_the_first_piece(arm, tokenizer):
    for arguments, reason in (
        ({"text": " "}, "empty"),
        ({"text": "a", "max_new_tokens": 250}, "the model takes 256"),
        ({"text": "a", "max_new_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            ctp.stream(arm, tokenizer, **arguments)
    with pytest.raises(ctp.InputError, match="empty"):
        ctp.generate(arm, tokenizer, [])
    nan = torch.full((1, 4), torch.nan)
    with pytest.raises(ctp.InputError, match="NaN"):
        Draw(0)(nan, nan)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": 1e-30}, {"temperature": torch.nan}, {"temperature": torch.inf}, {"top_p": 0},
     {"top_p": 1.1}, {"top_p": torch.nan}, {"repetition_penalty": 0}, {"repetition_penalty": torch.nan}],
)  # fmt: skip
def test_samplers_that_make_no_sense_are_refused(settings):
    with pytest.raises(ctp.InputError, match=f"{next(iter(settings))} must be"):
        ctp.Sampler(**settings)


def test_tokens_are_counted_without_padding(arm, tokenizer):
    """Where there is no padding token, the end token pads; counts stay those of the texts alone."""
    together = ctp.generate(arm, tokenizer, TEXTS, max_new_tokens=12)
    alone = [ctp.generate(arm, tokenizer, [text], max_new_tokens=12)[0] for text in TEXTS]
    assert [a.n_tokens for a in together] == [a.n_tokens for a in alone]
    assert _encode(arm, tokenizer, TEXTS)["attention_mask"].sum(1).tolist() == [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS
    ]


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
    inputs = _encode(arm, tokenizer, TEXTS)
    with pytest.raises(ctp.InputError, match="padding does not go with this model's attention window of 8"):
        greedy(arm, inputs["input_ids"], inputs["attention_mask"], 6)
    long = Arm("soft", model, prefix.random_rows(model, 8))
    with pytest.raises(ctp.InputError, match="attention window takes fewer than 8"):
        ctp.generate(long, tokenizer, TEXTS)
    with pytest.raises(ctp.InputError, match="attention window"):
        ctp.window_scores(long, ids)
