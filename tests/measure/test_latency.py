"""Latency: what is between two readings of the clock; settings and refusals. Nothing here is timed."""

import pytest
import torch

import ctplab as ctp
from ctplab.measure import latency as module
from ctplab.measure.latency import LatencyPoint, Quartiles, latency, quartiles
from ctplab.prompts import prefix


@pytest.fixture
def dense(llama):
    return ctp.Arm("dense", llama, prefix.none(llama))


def test_the_clock_is_read_three_times_a_run(llama, dense, monkeypatch):
    """With the prefix ready and nothing else done, after one pass, and after the last: no waiting in between."""
    passes, read = [], []

    def now(device):
        read.append(len(passes))
        return float(len(read))

    llama.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(module, "_now", now)
    latency(dense, tokens=(0, 3), length=8, new_tokens=5, repeats=2)
    runs = [read[i : i + 3] for i in range(0, len(read), 3)]
    assert len(runs) == 3 * 3, "three ways to attach, a round to warm up and two that count"
    assert [(first - began, last - first) for began, first, last in runs] == [(1, 4)] * 9
    assert passes and runs[0][0] == 1, "the one prefix is compiled before the first round"


def test_both_ways_see_the_same_text_at_the_same_width(llama, dense):
    """The first pass of a compiled prefix takes the text alone; concatenated, it takes k rows more."""
    widths = []

    def note(module, positional, named):
        found = named.get("input_ids")
        widths.append((named["inputs_embeds"] if found is None else found).shape[1])

    llama.register_forward_pre_hook(note, with_kwargs=True)
    latency(dense, tokens=(3,), length=8, new_tokens=3, repeats=1)
    assert widths == [3] + 2 * [8 + 3, 1, 1, 8, 1, 1]


def test_every_setting_once_and_positive(llama):
    arms = [ctp.Arm(name, llama, prefix.none(llama)) for name in ("dense", "packed")]
    points = latency(arms, tokens=(0, 3, 7), batch=2, length=8, new_tokens=3, repeats=2)
    settings = [(p.arm, p.attached, p.k) for p in points]
    ways = [("none", 0), ("concatenated", 3), ("compiled", 3), ("concatenated", 7), ("compiled", 7)]
    assert settings == [(arm, attached, k) for arm in ("dense", "packed") for attached, k in ways]
    assert all(0 < p.first_token_ms.low <= p.first_token_ms.median <= p.first_token_ms.high for p in points)
    assert all(p.tokens_per_second.median > 0 and (p.batch, p.length, p.new_tokens) == (2, 8, 3) for p in points)


def test_rates_are_new_tokens_after_the_first_over_the_batch(dense, monkeypatch):
    """A clock that moves a quarter of a second a reading: 250 ms to the first token, then 2 x 4 tokens in 0.25 s."""
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "_now", lambda device: next(ticks) / 4)
    (point,) = latency(dense, tokens=(0,), batch=2, length=8, new_tokens=5, repeats=3)
    assert point.first_token_ms == Quartiles(250, 250, 250) and point.tokens_per_second == Quartiles(32, 32, 32)


def test_quartiles_are_those_of_the_inclusive_method():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == Quartiles(3.0, 2.0, 4.0)
    assert quartiles([7.0]) == Quartiles(7.0, 7.0, 7.0)
    values = torch.rand(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = torch.quantile(values, torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64))
    found = quartiles(values.tolist())
    assert (found.median, found.low, found.high) == pytest.approx(want.tolist(), rel=1e-12)  # float64


def test_a_point_survives_json():
    from dataclasses import asdict

    point = LatencyPoint("dense", "compiled", 3, 1, 8, 2, Quartiles(2.0, 1.0, 3.0), Quartiles(5.0, 4.0, 6.0))
    assert asdict(point)["first_token_ms"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert LatencyPoint.from_json(asdict(point)) == point


def test_settings_that_do_not_fit_are_refused(dense):
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        latency(dense, tokens=(200,), length=100)
    for settings in ({"tokens": (-1,)}, {"tokens": ()}, {"batch": 0}, {"new_tokens": 1}, {"repeats": 0}):
        with pytest.raises(ctp.InputError, match="at least 1"):
            latency(dense, **settings)
