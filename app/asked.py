"""Many questions at once: what is asked, how the answers fill a table, and where they are kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from threading import Event
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import ARMS, Bench, Chosen
from ctplab.app.jobs import Job
from ctplab.disk import Compute, write_json
from ctplab.measure.on_answers import on_answers
from ctplab.measure.outcomes import KINDS, kinds, summary, verdict_words
from ctplab.measure.question_set import as_json, ask
from ctplab.measure.tasks.as_questions import questions_of
from ctplab.models.fingerprints import text_fingerprint
from ctplab.progress import Progress
from ctplab.show.tables import p_text, share
from ctplab.text import questions
from ctplab.text.questions import Asked
from ctplab.text.reading import STARTS

MOST = 2000
SMALL = 20_000_000  # bytes of a model that answers a whole block of questions in a moment
EVERYTHING = "all questions"


@dataclass(frozen=True)
class Wanted:
    """A set of questions and how it is asked."""

    source: str
    """``atlas``, ``task:NAME``, or the list itself."""
    limit: int
    arms: tuple[str, ...]
    hard_prompt: str
    max_new_tokens: int = 24
    raw: bool = False
    seed: int = 0
    start: str = "auto"

    @property
    def name(self) -> str:
        """What the set is called; a list by its fingerprint."""
        known = self.source == "atlas" or self.source.startswith("task:")
        return self.source.replace(":", "-") if known else f"list-{text_fingerprint(self.source)[:8]}"


def checked(wanted: Wanted) -> tuple[Wanted, list[Asked]]:
    """The set with every value inside its bounds, and its questions. Raises InputError."""
    limit = limits.whole(wanted.limit, "number of questions", 1, MOST)
    source = limits.text(wanted.source, "questions", 4_000_000).strip()
    if not source:
        raise ctp.InputError("Paste questions first, a line each, or choose another source.")
    arms = tuple(name for name in ARMS if name in wanted.arms)
    if not arms:
        raise ctp.InputError("Tick at least one arm.")
    if source == "atlas":
        found = questions.atlas(limit)
    elif source.startswith("task:") and "\n" not in source:
        found = questions_of(limits.name(source.removeprefix("task:"), "the task"), limit)
    else:
        found = questions.parse(source)[:limit]
    clean = Wanted(
        source,
        limit,
        arms,
        limits.text(wanted.hard_prompt, "hard prompt"),
        limits.whole(wanted.max_new_tokens, "longest answer", 1, 512),
        bool(wanted.raw),
        limits.whole(wanted.seed, "seed", 0, 2**31 - 1),
        limits.one_of(wanted.start, "start token", STARTS),
    )
    return clean, found


def blocks(
    bench: Bench, chosen: Chosen, wanted: Wanted, asked: list[Asked], progress: Progress
) -> Iterator[list[dict[str, Any]]]:
    """The rows so far, again and again. Answers are kept in the run folder, and taken from there if they are valid."""
    with bench.turns.turn():
        made = [bench.arm(name, chosen, wanted.hard_prompt, wanted.seed) for name in wanted.arms]
    small, full = bench.model(chosen.compressed), bench.model(chosen.full)
    folder = bench.store(chosen).questions(small.name, wanted.name)
    about = {"source": wanted.source[:2000], "questions": len(asked), "prompt": chosen.prompt, "arms": wanted.arms}
    write_json({**about, "full": full.name, "compressed": small.name}, folder / "questions.json")
    quick = max(int(loaded.about.get("bytes", 0)) for _, loaded in made) < SMALL
    done: list[Any] = []
    settings: dict[str, Any] = {"max_new_tokens": wanted.max_new_tokens, "raw": wanted.raw, "start": wanted.start}
    settings["block"] = 32 if quick else 4
    inner = ctp.kept_in(folder)

    def keep(name: str, key: dict[str, Any], compute: Compute) -> dict[str, Any]:
        def in_turn() -> dict[str, Any]:  # nothing is held while a page or a program reads what came of it
            with bench.turns.turn():
                return compute()

        return inner(name, key, in_turn)

    exact = wanted.source == "atlas" and bench.is_embedded(full.name)
    for block in ask(
        [arm for arm, _ in made], made[0][1].tokenizer, asked, exact=exact, **settings, keep=keep, progress=progress
    ):  # fmt: skip
        done.append(block)
        yield as_json(asked, done)


def answers(bench: Bench, chosen: Chosen, wanted: Wanted, stop: Event) -> Iterator[dict[str, Any]]:
    """For programs: rows and summary so far, block by block, until complete or stopped."""
    wanted, found = checked(wanted)

    def until_stopped(items: Any, *, total: int | None = None, label: str = "") -> Any:
        for item in items:
            if stop.is_set():
                return
            yield item

    for rows in blocks(bench, chosen, wanted, found, until_stopped):
        yield {"rows": rows, "summary": summary(rows)}


def start(bench: Bench, chosen: Chosen, wanted: Wanted, owner: str) -> Job:
    """Queue the set; its rows are in ``job.result["rows"]`` while it fills."""
    wanted, found = checked(wanted)

    def work(job: Job) -> None:
        job.result.update(rows=as_json(found, []), chosen=chosen, wanted=wanted)
        for rows in blocks(bench, chosen, wanted, found, job.counted):
            job.result["rows"] = rows
        if "full" in wanted.arms and len(wanted.arms) > 1:
            job.result["close"] = closeness(bench, chosen, wanted, job.result["rows"], job.counted)
        job.note = "kept: asking again only computes what is new"

    return bench.jobs.start("ask", f"ask {len(found)} questions ({wanted.name})", work, owner)


def closeness(
    bench: Bench, chosen: Chosen, wanted: Wanted, rows: list[dict[str, Any]], progress: Progress
) -> dict[str, Any]:
    """How close every arm is to the full model on its own answers; empty if it answered nothing."""
    keep = ctp.kept_in(bench.store(chosen).questions(bench.model(chosen.compressed).name, wanted.name))
    how: dict[str, Any] = {"raw": wanted.raw, "start": wanted.start, "keep": keep, "progress": progress}
    with bench.turns.turn():
        made = [bench.arm(name, chosen, wanted.hard_prompt, wanted.seed) for name in wanted.arms]
        if not any(row["answers"].get("full", {}).get("text", "").strip() for row in rows):
            return {}
        found = on_answers([arm for arm, _ in made], made[0][1].tokenizer, rows, **how)
    return {name: value.summary() for name, value in found.items()}


def table(rows: list[dict[str, Any]], kind: str, arms: tuple[str, ...]) -> dict[str, Any]:
    """The rows of a kind as a Dataframe value; the first column is their number."""
    marks = {True: "✓ ", False: "✗ ", None: ""}
    data = []
    for number, row in enumerate(rows, 1):
        if row["answers"] and (kind == EVERYTHING or kind in kinds(row)):
            given = [row["answers"].get(arm) for arm in arms]
            cells = ["…" if a is None else marks[a["right"]] + a["text"] for a in given]
            data.append([number, row["question"], " | ".join(row["expected"]), *cells])
    return {"headers": ["no.", "question", "expected", *arms], "data": data}


def counted(rows: list[dict[str, Any]], close: dict[str, Any] | None = None) -> str:
    """Counts, shares, paired differences, flips, and closeness to the full model if it is known, as HTML."""
    found = summary(rows)
    if not found["answered"]:
        return '<p class="hint">Counts appear with the first answered questions.</p>'
    shares = "".join(
        f"<tr><th>{escape(arm)}</th><td>{100 * s['value']:.0f}% [{100 * s['low']:.0f}, {100 * s['high']:.0f}]</td>"
        f"<td>{s['n']}</td></tr>"
        for arm, s in found["shares"].items()
    )
    differences = "".join(
        f"<tr><th>{escape(name)}</th><td>{100 * d['value']:+.0f}% [{100 * d['low']:+.0f}, {100 * d['high']:+.0f}]</td>"
        f"<td>{d['won']} : {d['lost']}</td><td>{p_text(d['p'])}</td><td>{verdict_words(d)}</td></tr>"
        for name, d in found["differences"].items()
    )
    flips = "".join(
        f"<tr><th>{escape(arm)}</th><td>{f['lost']}</td><td>{f['won']}</td><td>{f['n']}</td><td>{p_text(f['p'])}</td></tr>"
        for arm, f in found["flips"].items()
    )
    near = "".join(
        f"<tr><th>{escape(arm)}</th>"
        f"{''.join(f'<td>{ctp.Interval(**told[key])}</td>' for key in ('mean', 'median', 'p99'))}"
        f"<td>{share(ctp.Interval(**told['same_top']))}%</td></tr>"
        for arm, told in (close or {}).items()
    )
    kinds_ = " · ".join(f"{kind}: <strong>{count}</strong>" for kind, count in found["counts"].items())
    parts = [f"<p>{found['answered']} of {found['asked']} answered · {kinds_}</p>"]
    if shares:
        parts.append(f"<table><tr><th>arm</th><th>right [95%]</th><th>judged</th></tr>{shares}</table>")
    if differences:
        heads = "<tr><th>difference</th><th>[95%]</th><th>won : lost</th><th>p</th><th>so</th></tr>"
        parts.append(f"<table>{heads}{differences}</table>")
    if flips:
        heads = "<tr><th>against full</th><th>right to wrong</th><th>wrong to right</th><th>of</th><th>p</th></tr>"
        parts.append(f"<table>{heads}{flips}</table>")
    if near:
        heads = "<tr><th>on the full model's answers</th><th>mean KL, nats [95%]</th><th>median</th>"
        parts.append(f"<table>{heads}<th>99th percentile</th><th>same first choice</th></tr>{near}</table>")
    return f'<div class="counts">{"".join(parts)}</div>'


CHOICES = [EVERYTHING, *KINDS]
