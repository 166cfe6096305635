"""A share of the gap is written one way in every table, report and sentence."""

import math

import pytest
from conftest import scored
from torch import tensor

from ctplab.measure.recovery import from_scores
from ctplab.measure.stats import Interval
from ctplab.show import report, tables

SHARE = Interval(0.449, 0.42, 0.478)
FOUND = {"value": SHARE.value, "low": SHARE.low, "high": SHARE.high}
EXACT = {"exact_match": 0.25, "low": 0.2, "high": 0.31, "n": 8}


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (SHARE, "+45% [+42, +48]"),
        (Interval(-0.004, -1.2, 0.0), "-0% [-120, +0]"),
        (Interval(1.0, 1.0, 1.0), "+100% [+100, +100]"),
        (Interval(math.nan, math.nan, math.nan), "cannot tell"),
    ],
)
def test_percent(share, written):
    assert share.percent == written


def test_every_table_says_it_alike():
    recovered = from_scores(
        {n: scored(tensor(v)) for n, v in (("full", [1.0]), ("compressed", [2.0]), ("soft", [1.5]))}
    )
    assert recovered["soft"].recovery.percent in tables.arms_table(recovered)
    row = dict.fromkeys(("model", "tag", "prompt", "learned_on", "seed", "scored_on"), "x")
    row |= {"full": 1.0, "compressed": 3.0, "soft": 2.0, "recovery": FOUND}
    assert tables.sweep_cells([row])[1][0][-1] == SHARE.percent
    perplexity = {"x": {"full": 1.0, "soft": 2.0}}
    assert f"ppl 2.00  {SHARE.percent} |" in report.recovery_table(perplexity, {"x": {"soft": FOUND}}, "x")


def test_the_report_says_it_alike():
    arms = ("full", "compressed", "hard", "soft")
    result = {
        "questions": dict.fromkeys(arms, EXACT),
        "learned_on": "x",
        "recovery": {"x": {"soft": FOUND, "full+soft": FOUND}, "y": {"soft": FOUND | {"value": -0.5}}},
    }
    words = report.plain_words(result)
    assert f"closes {SHARE.percent} of the NLL gap" in words and f"is at {SHARE.percent} of the gap on x" in words
    assert "widens the gap by 50%" in words and "hard 25.0%, soft 25.0%" in words


def test_right_answers_are_written_alike():
    exact = {"soft": {**EXACT, "seen": EXACT, "held_out": EXACT}}
    assert report.questions_table(exact).count("25.0 [20.0, 31.0]") == 3
    row = {"level": "w4", "method": "soft", "task": "piqa", "metric": "acc", "printed": None}
    assert "25.0 [20.0, 31.0]" in tables.accuracy_table([row | {"ours": {"value": 0.25, "low": 0.2, "high": 0.31}}])


def test_a_p_value_is_never_zero():
    assert [tables.p_text(p) for p in (1.0, 0.02, 4.4e-196, 0.0)] == ["1", "0.02", "4.4e-196", "< 1e-300"]
