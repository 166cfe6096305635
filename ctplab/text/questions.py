"""Lists of questions, with or without an expected answer: pasted, or from CSV, JSONL, JSON and text files."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctplab.atlas.questions import questions as embedded
from ctplab.errors import InputError
from ctplab.text_files import parse_json

MOST = 20_000
LONGEST = 20_000  # characters of one question
NAMES = {"question": ("question", "prompt", "input"), "answer": ("answer", "expected", "target")}
"""Columns and fields that are read, the usual name first."""


@dataclass(frozen=True)
class Asked:
    """One question; ``expected``: answers any of which is right, none if nobody knows."""

    text: str
    expected: tuple[str, ...] = ()


def atlas(limit: int | None = None) -> list[Asked]:
    """The embedded world's questions, in an order of which every beginning is a fair sample."""
    return [Asked(question.text, (question.answer,)) for question in embedded()[:limit]]


def read(path: Path) -> list[Asked]:
    """The questions in a file: ``.csv``, ``.jsonl``, ``.json`` (an array), or a question a line.

    Raises InputError, with file and line, for what cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", str(error))
        raise InputError(f"cannot read the questions in {path}: {reason}") from None
    return parse(text, str(path), path.suffix.lower())


def parse(text: str, where: str = "the list", kind: str = "") -> list[Asked]:
    """The questions in a text. ``kind``: the suffix of its file; without one the text itself tells.

    Raises InputError, with ``where`` and the line, for what cannot be read, and if there are none or too many.
    """
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines: a question may hold U+2028
    first = next((line.strip() for line in lines if line.strip()), "")
    if kind in (".jsonl", ".ndjson") or (not kind and first.startswith("{")):
        found = [_of_row(_object(line, f"{where}, line {n}"), f"{where}, line {n}") for n, line in _full(lines)]
    elif kind == ".json" or (not kind and first.startswith("[{")):
        rows = _object(text, where)
        if not isinstance(rows, list):
            raise InputError(f"{where}: give an array of objects with a question each")
        found = [_of_row(row, f"{where}, entry {n}") for n, row in enumerate(rows, 1)]
    elif kind == ".csv" or (not kind and _is_header(first)):
        found = _of_csv(text, where)
    else:
        found = [_of_row(dict(zip(NAMES, line.split("\t"), strict=False)), where) for _, line in _full(lines)]
    if not found:
        raise InputError(f"{where} has no questions")
    if len(found) > MOST:
        raise InputError(f"{where} has {len(found):,} questions; at most {MOST:,} are asked at once")
    return found


def _full(lines: list[str]) -> list[tuple[int, str]]:
    return [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]


def _is_header(line: str) -> bool:
    return "," in line and bool({cell.strip().strip('"').lower() for cell in line.split(",")} & {"question", "prompt"})


def _object(text: str, where: str) -> Any:
    try:
        return parse_json(text, finite=False)
    except InputError as error:
        raise InputError(f"{where}: this is no JSON ({error})") from None


def _of_csv(text: str, where: str) -> list[Asked]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, {str(k or "").strip().lower(): v for k, v in row.items()}) for row in reader]
    except csv.Error as error:
        raise InputError(f"{where}: {error}") from None
    return [_of_row(row, f"{where}, line {n}") for n, row in rows]


def _of_row(row: Any, where: str) -> Asked:
    """One question from an object. An expected answer may be a text, a number or a list of texts."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: give an object with a question")
    question = next((row[name] for name in NAMES["question"] if row.get(name) is not None), None)
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: there is no question (a text called {' or '.join(NAMES['question'])})")
    if len(question) > LONGEST:
        raise InputError(f"{where}: the question has {len(question):,} characters; at most {LONGEST:,} are read")
    given = next((row[name] for name in NAMES["answer"] if row.get(name) not in (None, "", [])), [])
    answers = given if isinstance(given, list) else [given]
    if not all(isinstance(answer, str | int | float) and not isinstance(answer, bool) for answer in answers):
        raise InputError(f"{where}: an answer is a text, a number, or a list of those")
    clean = question.strip().encode("utf-8", "replace").decode()
    return Asked(clean, tuple(str(answer).strip().encode("utf-8", "replace").decode() for answer in answers))
