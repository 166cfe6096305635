"""``compare --questions``: many questions to the four arms, counted with intervals, kept and resumed."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import compared_arms, finish, say
from ctplab.disk import compute_always, write_text
from ctplab.errors import InputError
from ctplab.measure.on_answers import on_answers
from ctplab.measure.outcomes import summary, verdict_words
from ctplab.measure.question_set import as_json, ask
from ctplab.measure.stats import Interval
from ctplab.measure.tasks.as_questions import questions_of
from ctplab.progress import bar
from ctplab.show import tables
from ctplab.show.question_files import as_csv, comparator, jsonl
from ctplab.show.tables import table
from ctplab.text import questions
from ctplab.text.questions import Asked
from ctplab.text.reading import start_of

DEFAULT_TOKENS = 24


def asked_of(options: argparse.Namespace) -> list[Asked]:
    """The questions that ``--questions`` names: ``atlas``, ``task:NAME`` or a file. Raises InputError."""
    name, limit = options.questions, options.limit or None
    if name == "atlas":
        return questions.atlas(limit)
    if name.startswith("task:"):
        return questions_of(name.removeprefix("task:"), limit)
    return questions.read(Path(name))[:limit]


def compare_many(options: argparse.Namespace) -> None:
    """Ask every arm every question; tell counts and differences, and write the files that are asked for."""
    kept = ("full", "compressed", "prompt", "hard_prompt", "max_new_tokens", "raw", "start", "seed")
    about = {"temperature": 0.0, **{name: getattr(options, name) for name in kept}}
    writers = {
        ".jsonl": lambda rows: jsonl(rows, about),
        ".csv": lambda rows: as_csv(rows, about),
        ".json": lambda rows: comparator(rows, *pair, options.questions, about),
    }
    for path in options.write:
        if path.suffix not in writers:
            raise InputError(f"--write takes .jsonl, .csv, or .json (for LLM Comparator), not {path}")
        if path.exists() and not options.force:
            raise InputError(f"{path} exists already; --force replaces it")
    asked = asked_of(options)
    arms, tokenizer, dtype = compared_arms(options)
    pair = ("compressed", "soft" if options.prompt else "full")
    keep = ctp.kept_in(options.out) if options.out else compute_always
    settings: dict[str, Any] = {
        "exact": options.questions == "atlas" and options.full == "atlas",
        "max_new_tokens": options.max_new_tokens,
        "raw": options.raw,
        "start": options.start,
    }
    start = start_of(tokenizer, options.start, options.raw)
    blocks = list(ask(arms, tokenizer, asked, **settings, keep=keep, progress=bar))
    rows = as_json(asked, blocks)
    found = summary(rows, seed=options.seed)
    tell = say(options)
    shares = [[arm, str(Interval(s["value"], s["low"], s["high"])), str(s["n"])] for arm, s in found["shares"].items()]
    if shares:
        tell(table([f"arm (start: {start})", "right [95%]", "judged"], shares))
    differences = [
        [name, Interval(d["value"], d["low"], d["high"]).percent, f"{d['won']}:{d['lost']}", tables.p_text(d["p"]),
         verdict_words(d)]
        for name, d in found["differences"].items()
    ]  # fmt: skip
    if differences:
        tell("\n" + table(["difference", "[95%]", "won:lost", "p", "so"], differences))
    if found["flips"]:
        tell("\n" + tables.flips_table(found["flips"]))
    if options.fidelity:
        how: dict[str, Any] = {"raw": options.raw, "start": options.start, "keep": keep, "progress": bar}
        close = on_answers(arms, tokenizer, rows, **how)
        found["fidelity"] = {name: value.summary() for name, value in close.items()}
        tell("\nOn the full model's answers:\n" + tables.fidelity_table(found["fidelity"]))
    tell("\n" + table(["kind", "questions"], [[kind, str(count)] for kind, count in found["counts"].items()]))
    for path in options.write:
        write_text(writers[path.suffix](rows), path)
        tell(f"Wrote {path}")
    finish(options, {**found, "start": start, "dtype": dtype, "rows": rows})
