"""A set of answers as files: JSONL, CSV, and the JSON that PAIR's LLM Comparator shows. Strings out; writes nothing.

``about``: models, prompt and settings that made the answers; each file says them.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.measure.outcomes import kinds

Row = dict[str, Any]
LARGEST_SCORE = 1.5
"""LLM Comparator expects scores from -1.5 (B is better) to 1.5 (A is)."""


def jsonl(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """A line for every question, with its answers, the kinds that hold, and the settings."""
    lines = [{**row, "kinds": kinds(row), "settings": about} for row in rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def as_csv(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """A line for every question: an answer and a verdict for each arm, and in the last columns the settings."""
    arms = list(dict.fromkeys(arm for row in rows for arm in row["answers"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["question", "expected", *(f"{arm}{part}" for arm in arms for part in ("", " right")), "kinds", *about]
    )
    for row in rows:
        cells = []
        for arm in arms:
            answer = row["answers"].get(arm, {"text": "", "right": None})
            cells += [_plain(answer["text"]), {True: "yes", False: "no", None: ""}[answer["right"]]]
        made = [_plain(str(value)) for value in about.values()]
        first = [_plain(row["question"]), _plain(" | ".join(row["expected"]))]
        writer.writerow([*first, *cells, "; ".join(kinds(row)), *made])
    return out.getvalue()


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def comparator(rows: Sequence[Row], first: str, second: str, source: str, about: Mapping[str, Any]) -> str:
    """The answers of two arms as an LLM Comparator file. Its format: github.com/PAIR-code/llm-comparator, README.

    The score is 1.5 if only ``first`` is right, -1.5 if only ``second`` is, and 0 otherwise: no judge was asked.
    """
    examples = []
    for row in rows:
        a, b = (row["answers"].get(arm) for arm in (first, second))
        if a is None or b is None:
            continue
        right = [a["right"] is True, b["right"] is True]
        examples.append(
            {
                "input_text": row["question"],
                "tags": kinds(row),
                "output_text_a": a["text"],
                "output_text_b": b["text"],
                "score": LARGEST_SCORE * (right[0] - right[1]),
                "individual_rater_scores": [],
                "custom_fields": {"expected": " | ".join(row["expected"]), "right": right},
            }
        )
    fields = [{"name": "expected", "type": "string"}, {"name": "right", "type": "per_model_boolean"}]
    made = "; ".join(f"{name}: {value}" for name, value in about.items())
    found = {
        "metadata": {"source_path": f"{source} ({made})", "custom_fields_schema": fields},
        "models": [{"name": first}, {"name": second}],
        "examples": examples,
    }
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"
