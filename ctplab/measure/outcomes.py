"""What a set of answers says: kinds of questions to look at, and shares and differences with intervals. Pure.

A row is ``{"question", "expected", "answers": {arm: {"text", "right", "how"}}}``, as ``question_set.as_json`` gives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ctplab.measure.stats import flips, paired_mean, wilson

Row = dict[str, Any]
KINDS = {
    "all right": "every arm is right",
    "lost by compression": "full right, compressed wrong",
    "lost, then recovered": "full right, compressed wrong, soft right",
    "broken by the prompt": "compressed right, soft wrong",
    "arms differ": "the answers are not the same",
}
PAIRS = (("compressed", "full"), ("soft", "compressed"), ("hard", "compressed"), ("soft", "hard"), ("soft", "init"))
"""Differences that are reported if both arms were asked."""


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .!?").split())


def kinds(row: Row) -> list[str]:
    """The names of :data:`KINDS` that hold for one row."""
    answers = row["answers"]
    right = {arm: answer["right"] for arm, answer in answers.items()}
    lost = right.get("full") is True and right.get("compressed") is False
    holds = {
        "all right": bool(right) and all(value is True for value in right.values()),
        "lost by compression": lost,
        "lost, then recovered": lost and right.get("soft") is True,
        "broken by the prompt": right.get("compressed") is True and right.get("soft") is False,
        "arms differ": len({_plain(answer["text"]) for answer in answers.values()}) > 1,
    }
    return [name for name, is_so in holds.items() if is_so]


def summary(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Counts of :data:`KINDS`, the arms' shares of right answers, and paired differences, each with its 95% interval.

    Only questions that every arm has answered count. A share is over the answers with a verdict, a difference over the
    questions on which both arms have one.
    """
    names = list(dict.fromkeys(arm for row in rows for arm in row["answers"]))
    whole = [row for row in rows if row["answers"] and len(row["answers"]) == len(names)]
    found = [kinds(row) for row in whole]
    marks = {arm: [row["answers"][arm]["right"] for row in whole] for arm in names}
    shares = {}
    for arm, right in marks.items():
        judged = [mark for mark in right if mark is not None]
        if judged:
            shares[arm] = {**asdict(wilson(sum(judged), len(judged))), "n": len(judged)}
    differences = {
        f"{first} - {second}": difference
        for first, second in PAIRS
        if first in shares and second in shares and (difference := _difference(marks[first], marks[second], seed))
    }
    counts = {kind: sum(kind in row for row in found) for kind in KINDS}
    result = {"asked": len(rows), "answered": len(whole), "counts": counts, "shares": shares}
    return result | {"differences": differences, "flips": flips_against_full(marks)}


def flips_against_full(marks: Mapping[str, Sequence[bool | None]]) -> dict[str, dict[str, Any]]:
    """The :class:`Flips` of every arm against ``full``, if both were judged on any question.

    ``marks``: arm -> whether each answer is right, of the same questions; None: not judged.
    """
    if "full" not in marks:
        return {}
    found = {arm: flips(marks["full"], own) for arm, own in marks.items() if arm != "full"}
    return {arm: asdict(of_arm) for arm, of_arm in found.items() if of_arm.n}


def _difference(first: list[bool | None], second: list[bool | None], seed: int) -> dict[str, Any] | None:
    """Share of right answers of the first arm minus that of the second, on what both were judged."""
    found = flips(second, first)
    if not found.n:
        return None
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    a, b = (torch.tensor([bool(pair[i]) for pair in pairs]).double() for i in (0, 1))
    return {**asdict(paired_mean(a, b, seed=seed)), **asdict(found)}


def verdict_words(difference: dict[str, Any]) -> str:
    """``better``, ``worse`` or ``cannot tell``, by the exact test at 5%."""
    if difference["p"] >= 0.05:
        return "cannot tell"
    return "better" if difference["value"] > 0 else "worse"
