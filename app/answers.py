"""Several arms answer in lockstep, one token of each in turn. A page or a client shows their records."""

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from threading import Event
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import ARMS, Bench, Chosen
from ctplab.atlas.questions import FORM, Question, all_questions
from ctplab.measure.verdicts import Verdict, judge
from ctplab.prompts.arms import USUAL
from ctplab.prompts.prefix import PAPER_HARD_PROMPT
from ctplab.text.chat import has_template
from ctplab.text.reading import STARTS, start_of, written

PERIOD = 0.1  # seconds between updates of a page: faster than reading, slower than flooding


@dataclass(frozen=True)
class Request:
    """One question to several arms."""

    question: str
    arms: tuple[str, ...]
    hard_prompt: str
    ask: bool = True
    """The arm reads ``Q: ... A:`` and answers in one line; if False, it continues the text as it stands."""
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 24
    raw: bool = False
    """No chat template, even if the tokenizer has one."""
    start: str = "auto"
    """What stands between prefix and text, as for ``text.reading.encode``; the same for every arm."""


@dataclass
class Record:
    """One arm's answer so far."""

    arm: str
    model: str = ""
    bytes: int = 0
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    """Time of this arm alone; the others' turns are not counted."""
    first: float | None = None
    """Seconds to its first token."""
    correct: bool | None = None
    known: str = ""
    """The right answer, if the embedded world knows one."""
    how: str = ""
    """How the verdict was reached, in words."""
    sent: str = ""
    """The text that the model read behind its prefix."""
    start: str = ""
    """What stood between prefix and text: the start token, ``none``, or the template's own."""
    state: str = "waiting"
    """waiting, running, done, stopped or failed."""
    error: str = ""

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one."""
        later = self.seconds - (self.first or 0.0)
        return (self.tokens - 1) / later if self.tokens > 1 and later > 0 else None


@cache
def _wordings() -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in all_questions():
        for wording in question.asked:
            found.setdefault(wording, []).append(question)
    return found


def known_answers(question: str) -> list[Question]:
    """The embedded world's questions with this wording."""
    return _wordings().get(question.strip(), [])


def checked(request: Request) -> Request:
    """The request with every value inside its bounds. Raises InputError if one is not."""
    if not limits.text(request.question, "question").strip():
        raise ctp.InputError("Type a question first.")
    if not request.arms or len(request.arms) > len(ARMS):
        raise ctp.InputError("Tick at least one arm.")
    return Request(
        request.question,
        tuple(limits.text(arm, "arm", 40) for arm in request.arms),
        limits.text(request.hard_prompt, "hard prompt"),
        bool(request.ask),
        limits.number(request.temperature, "temperature", 0, 10),
        limits.number(request.top_p, "top-p", 0.01, 1),
        limits.number(request.repetition_penalty, "repetition penalty", 0.1, 10),
        limits.whole(request.seed, "seed", 0, 2**31 - 1),
        limits.whole(request.max_new_tokens, "longest answer", 1, 1024),
        bool(request.raw),
        limits.one_of(request.start, "start token", STARTS),
    )


def chats(request: Request, tokenizer: Any) -> bool:
    """Whether the question is a turn of a conversation, in the tokenizer's chat template."""
    return request.ask and not request.raw and has_template(tokenizer)


def read_text(request: Request, tokenizer: Any, answer: str) -> str:
    """What an arm has read when its ``answer`` is complete: question and answer as they were sent."""
    if chats(request, tokenizer):
        return written(tokenizer, request.question.strip()) + answer
    return f"{FORM.format(question=request.question.strip())} {answer}" if request.ask else request.question + answer


def _start(bench: Bench, chosen: Chosen, request: Request, record: Record) -> Generator[str]:
    """One arm's answer, piece by piece, a piece for every token. Raises InputError if the arm cannot run."""
    arm, loaded = bench.arm(record.arm, chosen, request.hard_prompt, request.seed)
    record.model, record.bytes = loaded.name, int(loaded.about.get("bytes", 0))
    record.sent = read_text(request, loaded.tokenizer, "")
    record.start = start_of(loaded.tokenizer, request.start, raw=not chats(request, loaded.tokenizer))

    def count() -> None:
        bench.tokens += 1
        record.tokens += 1

    turn, question = chats(request, loaded.tokenizer), request.question.strip()
    form = request.ask and not turn
    text = FORM.format(question=question) if form else question if turn else request.question
    return bench.stream(
        arm,
        loaded.tokenizer,
        text,
        max_new_tokens=request.max_new_tokens,
        sampler=ctp.Sampler(request.temperature, request.top_p, request.repetition_penalty, request.seed),
        stop="\n" if form else None,
        raw=not turn,
        start=request.start,
        on_token=count,
    )


def _advance(bench: Bench, record: Record, pieces: Generator[str]) -> bool:
    """Ask one arm for one more token. Returns False if its answer is complete."""
    with bench.turns.turn():
        began = time.perf_counter()
        piece = next(pieces, None)
        record.seconds += time.perf_counter() - began
    if piece is None:
        return False
    record.text += piece
    record.first = record.seconds if record.first is None else record.first
    return True


def answer(bench: Bench, chosen: Chosen, request: Request, stop: Event, period: float = PERIOD) -> Iterator[list[dict]]:
    """Yield all records whenever there is news, at most every ``period`` seconds; the last yield is complete.

    An arm that fails says why in its own record and leaves the others alone. Raises InputError for an empty
    question or no arms. Closing the iterator, or setting ``stop``, stops every model before its next token.
    """
    request = checked(request)
    known = known_answers(request.question) if request.ask else []
    records = [Record(name, known=known[0].answer if known else "") for name in request.arms]
    streams: dict[int, Generator[str]] = {}
    shown = time.perf_counter()
    try:
        yield snapshot(records)
        for i, record in enumerate(records):
            try:
                with bench.turns.turn():
                    streams[i] = _start(bench, chosen, request, record)
                record.state = "running"
            except ctp.InputError as error:
                record.state, record.error = "failed", str(error)
        while streams and not stop.is_set():
            news = False
            for i in list(streams):
                if stop.is_set():
                    break
                record, before = records[i], records[i].first
                try:
                    more = _advance(bench, record, streams[i])
                except ctp.InputError as error:
                    record.state, record.error, more = "failed", str(error), False
                if not more:
                    streams.pop(i).close()
                    if record.state == "running":
                        record.state = "done"
                        found = verdict(bench, record, request, known)
                        record.correct, record.how = found.right, found.how
                news = news or not more or before is None
            if news or time.perf_counter() - shown >= period:
                yield snapshot(records)
                shown = time.perf_counter()
    finally:
        for stream in streams.values():
            stream.close()
    for i in streams:
        records[i].state = "stopped"
    yield snapshot(records)


def verdict(bench: Bench, record: Record, request: Request, known: list[Question]) -> Verdict:
    """What can be said of one answer: exact for the embedded model's world, tolerant for any other model."""
    if not known:
        return Verdict(None, "")
    return judge(
        record.text, [q.answer for q in known], exact=bench.is_embedded(record.model), question=request.question
    )


def snapshot(records: list[Record]) -> list[dict[str, Any]]:
    """All records as plain JSON."""
    return [{**asdict(r), "text": r.text.strip(), "rate": r.rate} for r in records]


def warm(bench: Bench) -> None:
    """Ask every usual arm for one token: the first question finds prompts compiled and libraries loaded."""
    request = Request("Who is there?", USUAL, PAPER_HARD_PROMPT, max_new_tokens=1)
    for _ in answer(bench, bench.chosen(), request, Event()):
        pass
    bench.tokens = 0
