"""2,000 closed-book questions, each about one fact, with the exact answer and up to three distractors.

Half of the facts are *seen*: training text asks about them, in several phrasings. Half are *held out*: the model has
read them only as prose, so a right answer shows that it generalises to the question form.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache

from ctplab.atlas.facts import Fact, tables

#: The form in which both training text and the benchmark ask.
FORM = "Q: {question}\nA:"


@dataclass(frozen=True)
class Question:
    """A question of the benchmark."""

    text: str
    answer: str
    distractors: tuple[str, ...]
    fact: Fact
    asked: tuple[str, ...]
    """Every known phrasing of this question; ``text`` is one of them."""

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        return FORM.format(question=self.text)

    @property
    def held_out(self) -> bool:
        """True if the model has read the fact only as prose."""
        return self.fact.held_out


def _stable_seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big")


SIZE = 2000
"""Half seen, half held out."""


@cache
def questions() -> tuple[Question, ...]:
    """The benchmark's questions, in a fixed shuffled order, so that every slice is a fair sample."""
    shuffled = list(all_questions())
    random.Random(0).shuffle(shuffled)
    halves = [[q for q in shuffled if q.held_out == kind][: SIZE // 2] for kind in (False, True)]
    return tuple(question for pair in zip(*halves, strict=True) for question in pair)


def all_questions() -> tuple[Question, ...]:
    """One question for every fact, in the tables' order."""
    found = []
    for table in tables():
        values: dict[str, list[str]] = {}
        for fact in table.facts:
            column = values.setdefault(fact.attribute, [])
            if fact.value not in column:
                column.append(fact.value)
        for fact in table.facts:
            rng = random.Random(_stable_seed(fact.table, fact.name, fact.attribute))
            asked = tuple(form.format(name=fact.name) for form in table.templates[fact.attribute]["question"])
            others = [value for value in values[fact.attribute] if value != fact.value]
            distractors = tuple(rng.sample(others, min(3, len(others))))
            found.append(Question(rng.choice(asked), fact.value, distractors, fact, asked))
    return tuple(found)


def normalise(answer: str) -> str:
    """The form that exact match compares: first line, lower case, without article and final punctuation."""
    line = answer.strip().split("\n")[0].strip().rstrip(".!?,;").lower()
    for article in ("the ", "a ", "an "):
        line = line.removeprefix(article)
    return " ".join(line.split())


def is_correct(answer: str, question: Question) -> bool:
    """Whether ``answer`` matches exactly after :func:`normalise`."""
    return normalise(answer) == normalise(question.answer)
