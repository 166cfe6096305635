"""Latency: both ways of attaching a prompt give the same tokens; settings and refusals. Nothing here is timed."""

import pytest
import torch

import ctplab as ctp
from ctplab.decoding.generate import greedy
from ctplab.measure.latency import Spread, latency, spread, timed_greedy
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_rows


@torch.no_grad()
def test_concatenated_and_compiled_decode_the_same_tokens(model, web):
    ids = web.test.windows[:3, :20]
    arm = ctp.Arm("soft", model, prefix.random_rows(model, 5))
    rows = arm.prefix.rows
    wanted = greedy(arm, ids, torch.ones_like(ids), 6)
    assert torch.equal(timed_greedy(model, ids, 6, kv=compile_rows(model, rows))[0], wanted)
    assert torch.equal(timed_greedy(model, ids, 6, rows=rows)[0], wanted)


def test_every_setting_once_and_positive(llama):
    arms = [ctp.Arm(name, llama, prefix.none(llama)) for name in ("dense", "packed")]
    points = latency(arms, tokens=(0, 3, 7), batch=2, length=8, new_tokens=3, repeats=2)
    settings = [(p.arm, p.attached, p.k) for p in points]
    ways = [("none", 0), ("concatenated", 3), ("compiled", 3), ("concatenated", 7), ("compiled", 7)]
    assert settings == [(arm, attached, k) for arm in ("dense", "packed") for attached, k in ways]
    assert all(0 < p.first_token_ms.low <= p.first_token_ms.median <= p.first_token_ms.high for p in points)
    assert all(p.tokens_per_second.median > 0 and (p.batch, p.length, p.new_tokens) == (2, 8, 3) for p in points)


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]).low == 7.0


def test_settings_that_do_not_fit_are_refused(llama):
    arm = ctp.Arm("dense", llama, prefix.none(llama))
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        latency(arm, tokens=(200,), length=100)
    with pytest.raises(ctp.InputError, match="at least 1"):
        latency(arm, tokens=(-1,))
