"""Many questions to several arms, greedily, block by block: resumable, and readable while it fills."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ctplab.atlas.questions import FORM
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import answer_ends, before_end, behind_prefix, check_all, crowded_window, prepare
from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.verdicts import Verdict, judge
from ctplab.models import Tokenizer
from ctplab.models.fingerprints import text_fingerprint
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.ways import ways
from ctplab.text.questions import Asked
from ctplab.text.reading import chats, start_of

BLOCK = 32
"""Questions that are answered together, and kept together."""


@dataclass(frozen=True)
class Reply:
    """One arm's answer to one question, and what can be said of it."""

    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Block:
    """Answers of one arm to the questions from ``start`` on."""

    arm: str
    start: int
    replies: list[Reply]


def ask(
    arms: Sequence[Arm],
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    *,
    exact: bool = False,
    max_new_tokens: int = 24,
    raw: bool = False,
    start: str = "auto",
    block: int = BLOCK,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> Iterator[Block]:
    """Yield every arm's answers, block by block: all arms answer the same questions before the next ones come.

    A question is a turn of a conversation if the tokenizer has a chat template (``raw`` turns it off). Otherwise it has
    the form ``Q: ... A:``, and the answer is the rest of the line. ``start``: as for ``text.reading.encode``.
    ``exact``: the verdicts are those of the embedded world, for arms that are made of its model. ``keep`` keeps each
    block of answers, so that the next call goes on. Raises InputError if a question does not fit, and if two arms share
    a name.
    """
    if len({arm.name for arm in arms}) < len(arms) or not arms or not asked:
        raise InputError("a question set needs questions, and arms of different names")
    turn = chats(tokenizer, raw)
    settings = {
        "max_new_tokens": max_new_tokens,
        "raw": raw,
        "template": str(getattr(tokenizer, "chat_template", None)),
        "start": start_of(tokenizer, start, raw),
    }
    asked_as = [item.text.strip() if turn else FORM.format(question=item.text.strip()) for item in asked]
    check_all(arms, tokenizer, asked_as, max_new_tokens, raw=not turn, start=start)
    answer = partial(_answers, tokenizer=tokenizer, max_new_tokens=max_new_tokens, raw=not turn, start=start)
    rounds = [(first, arm) for first in range(0, len(asked), block) for arm in arms]
    for first, arm in progress(rounds, total=len(rounds), label="ask"):
        these = asked[first : first + block]
        texts = asked_as[first : first + block]
        key = {"arm": arm.fingerprint, "asked": text_fingerprint(*texts), **settings}
        found = keep(
            f"{arm.name}-{first:05d}",
            key,
            lambda arm=arm, texts=texts: {"answers": answer(arm, texts)},
        )["answers"]
        yield Block(arm.name, first, [_reply(text, item, exact) for text, item in zip(found, these, strict=True)])


def _reply(text: str, item: Asked, exact: bool) -> Reply:
    return Reply(text, judge(text, item.expected, exact=exact, question=item.text))


def _answers(
    arm: Arm, texts: list[str], *, tokenizer: Tokenizer, max_new_tokens: int, raw: bool, start: str
) -> list[str]:
    """Greedy answers; the first line only if the questions have the lab's own form (``raw``)."""
    ends = answer_ends(arm.model, tokenizer, raw)
    if raw:
        ends = [*ends, tokenizer("\n", add_special_tokens=False)["input_ids"][-1]]
    batch = prepare(arm, tokenizer, texts, max_new_tokens, raw=raw, start=start)
    crowded = crowded_window(arm, behind_prefix(batch.mask, arm.prefix.k), max_new_tokens)
    if len(texts) > 1 and (crowded or not ways(arm.model).padded):
        same: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": max_new_tokens, "raw": raw, "start": start}
        return [_answers(arm, [text], **same)[0] for text in texts]
    new = greedy(arm, batch, max_new_tokens, ends=ends)
    found = [tokenizer.decode(before_end(row, ends), skip_special_tokens=True) for row in new.tolist()]
    return [text.split("\n")[0].strip() if raw else text.strip() for text in found]


def as_json(asked: Sequence[Asked], blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """A row for every question with its answers so far: ``question``, ``expected``, ``answers`` by arm."""
    rows: list[dict[str, Any]] = [
        {"question": item.text, "expected": list(item.expected), "answers": {}} for item in asked
    ]
    for part in blocks:
        for i, reply in enumerate(part.replies, part.start):
            rows[i]["answers"][part.arm] = {"text": reply.text, "right": reply.verdict.right, "how": reply.verdict.how}
    return rows
