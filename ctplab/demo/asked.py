"""The questions of the tour: the paper's three and a dozen that a small instruct model can answer, asked as a user."""

from collections.abc import Sequence
from typing import Any

from ctplab.decoding.generate import generate
from ctplab.disk import once
from ctplab.measure.verdicts import judge
from ctplab.models.fingerprints import text_fingerprint
from ctplab.prompts.arms import Arm
from ctplab.runs.study import Study
from ctplab.text.questions import Asked

MAX_ANSWER = 32
"""Tokens; enough to tell a right answer from a wrong one."""


QUESTIONS = (
    Asked("Where is Long Beach?", ("California",)),
    Asked("Where is Tulsa?", ("Oklahoma",)),
    Asked("What is asparagus?", ("vegetable", "vegetables", "plant", "plants")),
    Asked("What is the capital of France?", ("Paris",)),
    Asked("What is the capital of Japan?", ("Tokyo",)),
    Asked("On which continent is Egypt?", ("Africa", "North Africa")),
    Asked("What is the largest planet of the solar system?", ("Jupiter",)),
    Asked("Who wrote Romeo and Juliet?", ("Shakespeare", "William Shakespeare")),
    Asked("How many days are there in a week?", ("seven", "7")),
    Asked("What colour is the sky on a clear day?", ("blue",)),
    Asked("What is frozen water called?", ("ice",)),
    Asked("Which animal gives us milk?", ("cow", "cows", "goat", "goats")),
    Asked("What do bees make?", ("honey",)),
    Asked("What is the opposite of hot?", ("cold",)),
    Asked("In which month is Christmas?", ("December",)),
)
"""The first three are the paper's (Figure 1)."""


def ask(study: Study, tag: str, arm: Arm, questions: Sequence[Asked]) -> list[str]:
    """The arm's answers through the tokenizer's chat template, kept in the run folder; greedy, on one line each."""
    tokenizer, texts = study.tokenizer, [question.text for question in questions]
    template = str(getattr(tokenizer, "chat_template", None))
    key = {"arm": arm.fingerprint, "asked": text_fingerprint(template, *texts), "tokens": MAX_ANSWER}

    def answers() -> dict[str, Any]:
        found = generate(arm, tokenizer, texts, max_new_tokens=MAX_ANSWER)
        return {"answers": [" ".join(answer.text.split()) for answer in found]}

    return once(study.store.score(study.folder(tag), arm.name, "fifteen-questions"), key, answers)["answers"]


def side_by_side(questions: Sequence[Asked], given: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Every question with every arm's answer and whether it is right."""
    return [
        {
            "question": question.text,
            "accepted": list(question.expected),
            "arms": {
                arm: {"text": answers[i], "right": _right(question, answers[i])} for arm, answers in given.items()
            },
        }
        for i, question in enumerate(questions)
    ]


def _right(question: Asked, answer: str) -> bool:
    return judge(answer, question.expected, question=question.text).right is True
