"""A claim is a test: yes, no, or cannot tell."""

import pytest

from ctplab.measure.stats import Interval
from ctplab.notebook.claims import Claim, above, all_of, below, check, larger, more_right


def test_intervals_decide():
    sure, unsure = Interval(0.5, 0.2, 0.8), Interval(0.1, -0.2, 0.3)
    assert (above(sure).so, above(unsure).so, below(sure).so, below(unsure).so) == (True, None, False, None)
    assert above(sure, 0.9).so is False and below(sure, 1).so is True
    assert larger(sure, Interval(0.0, -0.1, 0.1)).so is True
    assert larger(Interval(0.0, -0.1, 0.1), sure).so is False
    assert larger(sure, unsure).so is None


def test_mcnemar_decides_between_arms():
    """35 won against 29 lost tells nothing (p = 0.53), 20 against 0 much."""
    first = [True] * 35 + [False] * 29
    assert more_right(first, [not a for a in first]).so is None
    assert "p = 0.53" in more_right(first, [not a for a in first]).evidence
    assert more_right([True] * 20, [False] * 20).so is True
    assert more_right([False] * 20, [True] * 20).so is False


def test_all_of_several():
    yes, no, unknown = Claim(True, "a"), Claim(False, "b"), Claim(None, "c")
    assert all_of(yes, yes).so is True and all_of(yes, unknown).so is None and all_of(unknown, no).so is False
    assert all_of(yes, unknown).evidence == "a; c"


def test_claims_are_asserted_where_they_belong_and_reported_elsewhere(capsys):
    claims = {"one is one": True, "two is three": False, "who knows": Claim(None, "p = 0.5")}
    with pytest.raises(AssertionError, match="two is three"):
        check(claims, as_shipped=True)
    check(claims, as_shipped=False)
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == ["yes          one is one", "no           two is three", "cannot tell  who knows  (p = 0.5)"]
    check({"who knows": Claim(None)}, as_shipped=True)  # not contradicted
