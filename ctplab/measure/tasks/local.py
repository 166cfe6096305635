"""OpenBookQA, HellaSwag, PIQA and MMLU's European history for lm-eval, read from files instead of the hub.

The files are in ``CTPLAB_DATA``/tasks. Prompts, targets and metrics are upstream's (lm-eval 0.4.13). One task is added:
``european_history_2023`` asks as lm-eval did when the paper was written, with the answers' texts as choices. Only in
this form does "normalized accuracy" (Table 8) differ from plain accuracy.

lm-eval takes these configurations as Python dicts. As YAML files they would use the JSON builder of ``datasets``. It
takes only absolute paths and keeps a copy of every file in its cache. It can read neither PIQA's separate label file
nor the CSV's one column per choice, so converted copies would be needed. A custom task whose data fit a builder can
still be a YAML file (``evaluate.py``).
"""

import csv
import io
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ctplab.errors import InputError
from ctplab.text_files import parse_json, read_text

Rows = list[dict[str, Any]]
HISTORY = "high_school_european_history"
OURS = "european_history_2023"
"""A task that lm-eval does not have."""
LETTERS = "\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def _jsonl(path: Path) -> Rows:
    return [parse_json(line) for line in read_text(path).split("\n") if line.strip()]


def _openbookqa(folder: Path) -> Rows:
    return _jsonl(folder / "openbookqa" / "test.jsonl")


def _hellaswag(folder: Path) -> Rows:
    return _jsonl(folder / "hellaswag" / "hellaswag_val.jsonl")


def _piqa(folder: Path) -> Rows:
    labels = read_text(folder / "piqa" / "valid-labels.lst").split()
    rows = _jsonl(folder / "piqa" / "valid.jsonl")
    return [row | {"label": int(label)} for row, label in zip(rows, labels, strict=True)]


def _history(folder: Path) -> Rows:
    file = io.StringIO(read_text(folder / "mmlu" / f"{HISTORY}_test.csv"), newline="")
    return [
        {
            "question": row["question"],
            "choices": [row[f"choice{i}"] for i in range(4)],
            "answer": int(row["answer"]),
        }
        for row in csv.DictReader(file)
    ]


_READERS: dict[str, tuple[Callable[[Path], Rows], dict[str, Any]]] = {
    "openbookqa": (
        _openbookqa,
        {
            "doc_to_text": "question_stem",
            "doc_to_target": "{{choices.label.index(answerKey.lstrip())}}",
            "doc_to_choice": "{{choices.text}}",
        },
    ),
    "hellaswag": (_hellaswag, {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "choices"}),
    "piqa": (
        _piqa,
        {
            "doc_to_text": "Question: {{goal}}\nAnswer:",
            "doc_to_target": "label",
            "doc_to_choice": "{{[sol1, sol2]}}",
        },
    ),
    f"mmlu_{HISTORY}": (
        _history,
        {
            "description": "The following are multiple choice questions (with answers) about high school european "
            "history.\n\n",
            "doc_to_text": "{{question.strip()}}" + LETTERS,
            "doc_to_target": "answer",
            "doc_to_choice": ["A", "B", "C", "D"],
        },
    ),
    OURS: (
        _history,
        {
            "doc_to_text": "Question: {{question.strip()}}\nChoices:" + LETTERS,
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
        },
    ),
}
NAMES = tuple(_READERS)


def config(name: str) -> dict[str, Any] | None:
    """Build lm-eval's configuration of the task ``name``, which is read from ``CTPLAB_DATA``.

    Returns None if the task is not one of these, or if no folder is set and lm-eval has the task itself. The task that
    lm-eval does not have is then read from the hub. Raises InputError if the folder's files are missing or damaged.
    """
    root = os.environ.get("CTPLAB_DATA")
    if name not in _READERS or not (root or name == OURS):
        return None
    read, prompts = _READERS[name]
    if root:
        try:
            rows = read(Path(root) / "tasks")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read the task {name} from {root}/tasks: {error}") from None

        def dataset(**_: Any) -> dict[str, Any]:
            Dataset: Any = import_module("datasets").Dataset  # optional

            return {"test": Dataset.from_list(rows)}

        source: dict[str, Any] = {"custom_dataset": dataset}
    else:
        source = {"dataset_path": "cais/mmlu", "dataset_name": HISTORY}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    return {
        "task": name,
        **source,
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "metric_list": metrics,
        **prompts,
    }
