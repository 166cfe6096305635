"""Verdicts on written-out answers: right, wrong, and the cases in which no verdict is better than a wrong one."""

import pytest

from ctplab.atlas.questions import questions
from ctplab.measure.tasks.closed_book import marks
from ctplab.measure.verdicts import judge, marked, says


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The Weser River flows into the North Sea.", "North Sea", True),
        ("it ends in the north sea", "the North Sea", True),
        ("Long Beach, California, is a city.", "California", True),
        ("In California.", "California", True),
        ("Tulsa is in Oklahoma", "Oklahoma", True),
        ("It is a vegetable!", "vegetable", True),
        ("São Paulo", "Sao Paulo", True),
        ("Texas. Oklahoma is its neighbour", "Oklahoma", True),
        ("Mississippi", "Kansas", False),
        ("", "Kansas", False),
        ("vegetables", "vegetable", False),
        ("New York", "York", None),
        ("It is in New York, I think", "York", None),
        ("It lies in West Virginia.", "Virginia", None),
        ("Kansas City", "Kansas", None),
        ("It is not in the North Sea.", "North Sea", None),
        ("anything", "the", None),
    ],
)
def test_a_free_answer(answer, expected, right):
    verdict = says(answer, expected)
    assert verdict.right is right
    assert right is None or expected in verdict.how


def test_words_of_the_question_prove_nothing():
    assert says("Lima is in Peru", "Peru", "Is Lima in Peru or in Chile?").right is None


def test_any_of_several_expected_answers_is_right():
    assert judge("it is in Maine", ["Oregon", "Maine"]).right
    assert judge("it is in Ohio", ["Oregon", "Maine"]).right is False
    assert judge("whatever", []).right is None


def test_the_embedded_form_is_compared_exactly():
    assert judge(" the Oklahoma.", ["Oklahoma"], exact=True).right
    assert judge("Oklahoma City", ["Oklahoma"], exact=True).right is False
    assert judge("in Oklahoma", ["Oklahoma"], exact=True).right is False


def test_marks_of_the_embedded_questions():
    asked = list(questions())[:3]
    given = [asked[0].answer, f"It is {asked[1].answer}, I think", "nothing"]
    assert marked(given, asked, exact=True) == marks(given, asked) == [True, False, False]
    assert marked(given, asked, exact=False) == [True, True, False]
