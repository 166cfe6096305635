"""Perplexity on the same targets for every arm; recovery; statistics."""

import json
import math

import pytest
import torch
from conftest import scored

import ctplab as ctp
from ctplab.atlas.questions import questions
from ctplab.measure import perplexity
from ctplab.measure.stats import wilson
from ctplab.measure.tasks.closed_book import answers, marks
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_rows


@pytest.fixture
def windows(web):
    return web.test.windows[:6]


def test_agrees_with_an_independent_float64_loop(model, windows):
    arm = ctp.Arm("soft", model, prefix.random_rows(model, 5))
    doubled = model.double()
    total, count = 0.0, 0
    for window in windows:
        ids = torch.tensor(arm.prefix.ids + tuple(window.tolist()))
        logits = doubled(ids[None], use_cache=False).logits[0]
        logp = logits.double().log_softmax(-1)
        for position in range(6, len(ids)):  # the first real token is no target
            total -= float(logp[position - 1, ids[position]])
            count += 1
    found = ctp.perplexity(ctp.Arm("soft", model.float(), arm.prefix), windows)
    assert found.n_tokens == count == 6 * 47
    assert found.nll == pytest.approx(total, rel=1e-5)  # fp32 model against float64


def test_a_prefix_with_no_effect_leaves_perplexity_unchanged(model, windows, monkeypatch):
    """The published evaluator fails this: its divisor grows with k."""
    plain = ctp.perplexity(ctp.Arm("compressed", model, prefix.none(model)), windows)
    monkeypatch.setattr(perplexity, "logits_after", lambda model, kv, ids: model(ids).logits)  # deaf to the prefix
    prompted = ctp.perplexity(ctp.Arm("soft", model, prefix.random_rows(model, 20)), windows)
    assert prompted.n_tokens == plain.n_tokens
    assert prompted.ppl == pytest.approx(plain.ppl, rel=1e-6)
    published = prompted.ppl_as_published(20, 48)
    assert published == pytest.approx(plain.ppl ** (47 / 67), rel=1e-6) and published < plain.ppl


def test_published_denominator_is_reproduced_on_purpose(llama, windows):
    """Cross-entropy with reduction 'none', ignored prompt positions, then a mean over all positions."""
    k, rows = 9, prefix.random_rows(llama, 9)
    joined = torch.cat([rows.rows.expand(6, -1, -1), embeddings(llama)[windows]], 1)
    labels = torch.cat([torch.full((6, k), -100), windows], 1)
    logits = llama(inputs_embeds=joined, use_cache=False).logits
    labels[:, k] = -100  # Eq. (1): the first real token is unscored
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
    )
    reported = math.exp(float(losses.double().sum()) / (6 * (k + 47)))
    score = ctp.perplexity(ctp.Arm("soft", llama, rows), windows)
    assert score.ppl_as_published(k, 48) == pytest.approx(reported, rel=1e-5)


def test_batch_size_does_not_change_the_score(model, windows):
    arm = ctp.Arm("soft", model, prefix.random_rows(model, 5))
    scores = [ctp.perplexity(arm, windows, batch=b).nll for b in (1, 4, 6)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6) == pytest.approx(scores[2], rel=1e-6)


@torch.no_grad()
def test_padding_and_concatenation_do_not_change_the_score(model, windows):
    """The same windows with the prefix as plain embeddings and padding behind the text, in one forward pass."""
    k, rows = 5, prefix.random_rows(model, 5)
    score = ctp.perplexity(ctp.Arm("soft", model, rows), windows)
    pad = torch.zeros(6, 9, dtype=torch.long)
    joined = torch.cat([rows.rows.expand(6, -1, -1), embed(model, torch.cat([windows, pad], 1))], 1)
    mask = torch.cat([torch.ones(6, k + 48, dtype=torch.long), pad], 1)
    logits = model(inputs_embeds=joined, attention_mask=mask, use_cache=False).logits[:, k : k + 47]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
    assert score.ppl == pytest.approx(math.exp(float(nll) / (6 * 47)), rel=1e-5)  # fp32, other order of sums


def test_keys_and_values_score_as_the_rows_they_come_from(llama, windows):
    rows = prefix.random_rows(llama, 5)
    kv = prefix.KVPrefix("kv", tuple(compile_rows(llama, rows.rows)))
    scores = [ctp.perplexity(ctp.Arm("soft", llama, p), windows).nll for p in (rows, kv)]
    assert scores[0] == scores[1]


def test_scores_add_as_sums():
    a, b = ctp.Score(10.0, 5), ctp.Score(30.0, 10)
    assert (a + b).ppl == pytest.approx(math.exp(40 / 15))


def test_wrong_width_and_overflow_are_refused(llama, windows):
    wide = ctp.Prefix("soft", torch.zeros(3, 33))
    with pytest.raises(ctp.InputError, match="width 33, the model 32"):
        ctp.perplexity(ctp.Arm("soft", llama, wide), windows)
    long = prefix.random_rows(llama, 240)
    with pytest.raises(ctp.InputError, match="sequence length of at most 16"):
        ctp.perplexity(ctp.Arm("soft", llama, long), windows)


def test_recovery_anchors_and_interval():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(200, generator=generator) + 2
    worse = losses + 1 + 0.1 * torch.rand(200, generator=generator)
    full, compressed = scored(losses), scored(worse)
    assert ctp.recovery(full, compressed, full).value == pytest.approx(1)
    assert ctp.recovery(full, compressed, compressed).value == pytest.approx(0)
    half = ctp.recovery(full, compressed, scored((losses + worse) / 2))
    assert half.low <= half.value <= half.high and half.value == pytest.approx(0.5)
    assert math.isnan(ctp.recovery(full, full, full).value)


def test_the_bootstrap_interval_covers_the_truth():
    """95% intervals over 200 simulated studies with a true recovery of 0.4 cover it 90 to 99% of the time."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for trial in range(200):
        base = 2 + torch.rand(60, generator=generator)
        gap = 1 + 0.5 * torch.randn(60, generator=generator)
        arm = base + gap - 0.4 + 0.3 * torch.randn(60, generator=generator)
        interval = ctp.recovery(scored(base), scored(base + gap), scored(arm), draws=400, seed=trial)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_change_divides_by_the_targets_of_its_windows():
    """Windows of different lengths: the sum of differences over the sum of targets, in value and in every draw."""
    counts = torch.tensor([1, 9, 30, 60])
    other = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * counts
    arm = ctp.WindowScores(other + 0.5 * counts, counts)
    found = ctp.change(arm, ctp.WindowScores(other, counts))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)  # float64 sums of 4
    assert arm.score.mean - ctp.WindowScores(other, counts).score.mean == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(ctp.InputError, match="different windows"):
        ctp.change(arm, ctp.WindowScores(other, counts + 1))


def test_window_scores_survive_json_and_sum_to_the_score(llama, windows):
    arm = ctp.Arm("compressed", llama, prefix.none(llama))
    found = ctp.window_scores(arm, windows)
    assert (len(found), found.n_tokens.tolist()) == (6, [47] * 6)
    back = ctp.WindowScores.from_json(json.loads(json.dumps(found.to_json())))
    assert torch.equal(back.nll, found.nll) and back.score == found.score == ctp.perplexity(arm, windows)
    assert back.score.ppl == pytest.approx(math.exp(float(found.nll.sum()) / (6 * 47)))
    with pytest.raises(ctp.InputError, match="no windows"):
        ctp.window_scores(arm, windows[:0])
    with pytest.raises(ctp.InputError, match="no targets"):
        ctp.Score(1.0, 0)


def test_wilson_matches_the_textbook():
    assert wilson(8, 10).low == pytest.approx(0.4902, abs=1e-3)  # Wilson score interval, n = 10, p = 0.8
    assert wilson(8, 10).high == pytest.approx(0.9433, abs=1e-3)


def test_questions_are_answered_in_their_order(llama, tokenizer):
    asked = list(questions()[:20])
    arm = ctp.Arm("compressed", llama, prefix.none(llama))
    together = answers(arm, tokenizer, asked, batch=7)
    assert together == [answers(arm, tokenizer, [q])[0] for q in asked]
    assert marks([q.answer.upper() + "." for q in asked], asked) == [True] * 20
