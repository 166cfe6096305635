"""Exact match on closed-book questions, greedy, for any arm."""

from ctplab import parallel
from ctplab.atlas.questions import Question, is_correct
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import answer_ends, before_end, left_padded, padding_token
from ctplab.models import Tokenizer
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.ways import ways
from ctplab.text.reading import chats, encode

MAX_ANSWER = 14  # tokens; the longest answer of the embedded world has fewer


def answers(
    arm: Arm,
    tokenizer: Tokenizer,
    questions: list[Question],
    *,
    batch: int = 256,
    raw: bool = False,
    start: str = "auto",
    progress: Progress = silent,
) -> list[str]:
    """The arm's answer to every question: the rest of its line, in the questions' order.

    ``start``: as for :func:`ctplab.text.reading.encode`. Several processes share the batches. Raises InputError as
    :func:`ctplab.decoding.batched.greedy` does.
    """
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    ends = [newline, *answer_ends(arm.model, tokenizer, raw)]
    turn = chats(tokenizer, raw)  # a turn needs no form of its own
    rows = [encode(tokenizer, q.text if turn else q.prompt, raw=not turn, start=start) for q in questions]
    batch = batch if ways(arm.model).padded else 1
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
