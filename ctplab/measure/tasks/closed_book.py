"""Exact match on closed-book questions, greedy, for any arm."""

from ctplab import parallel
from ctplab.atlas.questions import Question, is_correct
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import answer_ends, before_end, encode, left_padded, padding_token
from ctplab.models import Tokenizer
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.text.chat import has_template

MAX_ANSWER = 14  # tokens; the longest answer of the embedded world has fewer


def answers(
    arm: Arm,
    tokenizer: Tokenizer,
    questions: list[Question],
    *,
    batch: int = 256,
    raw: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """The arm's answer to every question: the rest of its line, in the questions' order.

    Several processes share the batches. Raises InputError as :func:`ctplab.decoding.batched.greedy` does.
    """
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    ends = [newline, *answer_ends(arm.model, tokenizer, raw)]
    raw = raw or not has_template(tokenizer)  # else the question is a turn, and needs no form of its own
    rows = [encode(arm, tokenizer, q.prompt if raw else q.text, raw) for q in questions]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # similar lengths together: little padding
    found: list[tuple[int, str]] = []
    starts = parallel.share(list(range(0, len(order), batch)))
    for at in progress(starts, total=len(starts), label=f"ask {arm.name}"):
        chosen = order[at : at + batch]
        asked = left_padded([rows[i] for i in chosen], arm.model, padding_token(tokenizer))
        new = greedy(arm, asked, MAX_ANSWER, ends=ends)
        for i, row in zip(chosen, new.tolist(), strict=True):
            text = tokenizer.decode(before_end(row, ends), skip_special_tokens=True)
            found.append((i, text.split("\n")[0].strip()))
    return [text for _, text in sorted(parallel.gather(found))]


def marks(given: list[str], questions: list[Question]) -> list[bool]:
    """Right or wrong, question by question."""
    return [is_correct(answer, question) for answer, question in zip(given, questions, strict=True)]
