"""How close arms are to the full model on its own answers to questions, token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.atlas.questions import FORM
from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.fidelity import Fidelity, fidelity
from ctplab.models import Tokenizer
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.text.answered import answered
from ctplab.text.reading import chats


def on_answers(
    arms: Sequence[Arm],
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    raw: bool = False,
    start: str = "auto",
    batch: int = 16,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> dict[str, Fidelity]:
    """Compare every arm's distributions with those of the arm ``full`` at the tokens of the full model's answers.

    ``rows``: as ``question_set.as_json`` gives them; those without an answer of ``full`` are left out. The questions
    are read as they were asked (``raw`` and ``start`` as there). Raises InputError if there is no arm ``full``, and if
    it answered nothing.
    """
    full = next((arm for arm in arms if arm.name == "full"), None)
    if full is None:
        raise InputError("closeness to the full model needs the arm 'full'")
    turn, rows = chats(tokenizer, raw), [row for row in rows if "full" in row["answers"]]
    texts = [row["question"].strip() if turn else FORM.format(question=row["question"].strip()) for row in rows]
    said = [row["answers"]["full"]["text"] for row in rows]
    split = answered(tokenizer, texts, said, raw=not turn, start=start)
    settings: dict[str, Any] = {"batch": batch, "keep": keep, "progress": progress}
    return {
        arm.name: fidelity(arm, full, split, name=f"{arm.name}--against", **settings) for arm in arms if arm is not full
    }
