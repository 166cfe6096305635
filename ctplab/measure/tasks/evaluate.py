"""Zero-shot tasks for any arm. lm-eval asks the questions, and the arm answers them behind its compiled prefix.

``atlas``, the embedded closed-book questions, does not need lm-eval.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch

from ctplab.atlas.questions import questions
from ctplab.disk import Keep
from ctplab.errors import InputError
from ctplab.measure.stats import Flips, Interval, flips, mcnemar, paired_mean, wilson
from ctplab.measure.tasks import local
from ctplab.measure.tasks.closed_book import answers, marks
from ctplab.measure.tasks.custom import check_task
from ctplab.measure.tasks.harness import as_lm, only_errors
from ctplab.models import Tokenizer, hub
from ctplab.models.anatomy import check_context
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.text.reading import chats, start_of

GENERATED = "generate_until"
"""lm-eval's kind of task whose answer is written, not chosen."""


@dataclass(frozen=True)
class Metric:
    """A metric's value, its standard error (None if lm-eval gives none) and the number of questions."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class TaskResult:
    """One arm on one task."""

    metrics: dict[str, Metric]
    marks: dict[str, list[float]]
    """Metric -> one value per question, in the task's order. Paired tests need these."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``."""
        return cls({name: Metric(**metric) for name, metric in data["metrics"].items()}, data["marks"])

    @property
    def main(self) -> str:
        """The metric to report: the paper's normalised accuracy if the task has it."""
        return next(iter([m for m in ("acc_norm", "acc", "exact_match") if m in self.marks] or self.metrics))

    @property
    def share(self) -> Interval:
        """Share of right answers by the main metric, with its 95% Wilson interval. Raises InputError if it is none."""
        right = self.marks.get(self.main)
        if right is None:
            raise InputError(f"{self.main} is no share of right answers")
        return wilson(round(sum(right)), len(right))


@dataclass(frozen=True)
class Paired:
    """Two arms on the same questions."""

    difference: Interval
    """Mean of the first minus mean of the second, paired bootstrap over questions."""
    p: float
    """p value of the exact McNemar test on the questions that only one of the two arms gets right."""


def evaluate(
    arm: Arm,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    start: str = "auto",
    raw: bool = False,
    progress: Progress = silent,
) -> dict[str, TaskResult]:
    """Ask ``tasks``: ``atlas``, lm-eval's tasks by name, or custom tasks by the path of their YAML file.

    ``limit`` takes only the first questions. If ``CTPLAB_DATA`` is set, the tasks of ``local.py`` are read from it. All
    other tasks are lm-eval's own and may need the hub. ``start``: what stands between prefix and question, as for
    :func:`ctplab.text.reading.encode`. If the tokenizer has a chat template, questions whose answer is generated are
    asked through it (``raw`` turns it off); given answers are compared without it, as they are published. Raises
    InputError if lm-eval is missing or knows no such task.
    """
    check_context(arm.model, arm.prefix.k, 2)
    found = {}
    if "atlas" in tasks:
        found["atlas"] = _closed_book(arm, tokenizer, limit, start, raw, progress)
    named = [name for name in dict.fromkeys(tasks) if name != "atlas"]
    if named:
        found |= _ask(arm, tokenizer, named, limit, batch, seed, start, raw)
    return found


def asked_from(task: str) -> str:
    """Identify the source of a task's questions. Kept results of the task are valid while this stays the same."""
    if task == "atlas":
        return hashlib.sha256("\n".join(question.text for question in questions()).encode()).hexdigest()[:16]
    if _is_file(task):
        return hashlib.sha256(Path(task).read_bytes()).hexdigest()[:16]
    return os.environ.get("CTPLAB_DATA", "") if task in local.NAMES else ""


def kept_tasks(
    keep: Keep,
    name: str,
    arm: Arm,
    tokenizer: Tokenizer,
    task: str,
    *,
    limit: int | None,
    batch: int,
    seed: int,
    start: str = "auto",
    raw: bool = False,
    progress: Progress,
) -> dict[str, TaskResult]:
    """The arm's results on ``task`` (one task, or every member of a group), kept under ``name``."""

    def ask() -> dict[str, Any]:
        settings: dict[str, Any] = {"limit": limit, "batch": batch, "seed": seed, "start": start, "raw": raw}
        found = evaluate(arm, tokenizer, [task], **settings, progress=progress)
        return {part: asdict(result) for part, result in found.items()}

    key = {"arm": arm.fingerprint, "task": task, "from": asked_from(task), "limit": limit, "seed": seed}
    key["start"] = start_of(tokenizer, start, raw=raw or task != "atlas")
    if task != "atlas" and chats(tokenizer, raw):
        key["turns"] = "if answers are generated"
    kept = keep(name, key, ask)
    return {part: TaskResult.from_json(result) for part, result in kept.items()}


def _closed_book(
    arm: Arm, tokenizer: Tokenizer, limit: int | None, start: str, raw: bool, progress: Progress
) -> TaskResult:
    asked = list(questions())[:limit]
    given = answers(arm, tokenizer, asked, start=start, raw=raw, progress=progress)
    right = [float(mark) for mark in marks(given, asked)]
    share, n = sum(right) / len(asked), len(asked)
    return TaskResult({"exact_match": Metric(share, (share * (1 - share) / n) ** 0.5, n)}, {"exact_match": right})


def _ask(
    arm: Arm, tokenizer: Tokenizer, names: list[str], limit: int | None, batch: int, seed: int, start: str, raw: bool
) -> dict[str, TaskResult]:
    """lm-eval's results for tasks by name or YAML file."""
    try:
        harness: Any = import_module("lm_eval")
        ConfigurableTask: Any = import_module("lm_eval.api.task").ConfigurableTask
        TaskManager: Any = import_module("lm_eval.tasks").TaskManager
    except ImportError:
        raise InputError("tasks need lm-eval: pip install 'ctplab[tasks]'") from None
    with only_errors():
        try:
            asked: list[Any] = []
            for name in names:
                config = local.config(name)
                asked.append(name if config is None else ConfigurableTask(config=config))
            theirs = [task for task in asked if isinstance(task, str) and not _is_file(task)]
            manager = TaskManager(include_defaults=bool(theirs))
            unknown = [name for name in theirs if name not in manager.all_tasks]
            if unknown:
                raise InputError(f"lm-eval knows no task {unknown[0]!r}; 'lm-eval ls tasks' names them all")
            found: dict[str, TaskResult] = {}
            for each in asked:
                with hub.or_cache() if each in theirs else nullcontext():
                    loaded: Any = manager.load([each])
                for task in loaded["tasks"].values():
                    if task.get_config("num_fewshot") is None:
                        task.set_config(key="num_fewshot", value=0)
                    task.set_fewshot_seed(seed=seed)
                turns = chats(tokenizer, raw) and all(t.OUTPUT_TYPE == GENERATED for t in loaded["tasks"].values())
                lm = as_lm(arm, tokenizer, batch, "none" if turns else start)  # a template writes the start itself
                # simple_evaluate would also reseed the whole process and query the machine for seconds
                out: Any = harness.evaluate(
                    lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=1000, apply_chat_template=turns
                )
                found |= {name: _result(out["results"][name], samples) for name, samples in out["samples"].items()}
        except (ConnectionError, FileNotFoundError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"a task's data cannot be had ({reason}); {', '.join(local.NAMES)} can be read from the folder "
                "tasks of CTPLAB_DATA"
            ) from error
        except (InputError, MemoryError):
            raise
        except Exception as error:  # lm-eval believes its files: what it does with a wrong one can be anything
            custom = [name for name in names if name.endswith((".yaml", ".yml"))]
            if not custom:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise InputError(f"lm-eval cannot use {', '.join(custom)} ({reason})") from error
    return found


def _is_file(name: str) -> bool:
    """Whether ``name`` is a custom task's YAML file. Raises InputError if it is a YAML path without a file."""
    if not name.endswith((".yaml", ".yml")):
        return False
    if not Path(name).is_file():
        raise InputError(f"there is no task file {name}")
    check_task(Path(name))
    return True


def _result(values: dict[str, Any], samples: list[dict[str, Any]]) -> TaskResult:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    metrics, marks = {}, {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, float | int):
            continue
        stderr = values.get(f"{name}_stderr,{filtered}")
        metrics[name] = Metric(float(value), stderr if isinstance(stderr, float | int) else None, len(samples))
        if all(isinstance(sample.get(name), float | int) for sample in samples):
            marks[name] = [float(sample[name]) for sample in samples]
    return TaskResult(metrics, marks)


def compare(first: TaskResult, second: TaskResult, metric: str | None = None, *, seed: int = 0) -> Paired:
    """Compare two arms' results on one task question by question, by the main metric or another.

    Raises InputError if a result lacks the metric or their numbers of questions differ.
    """
    a, b = _same_questions(first, second, metric)
    difference = paired_mean(torch.tensor(a), torch.tensor(b), seed=seed)
    return Paired(difference, mcnemar([x > 0.5 for x in a], [x > 0.5 for x in b]))


def task_flips(full: TaskResult, arm: TaskResult, metric: str | None = None) -> Flips:
    """Count the flips on one task by the main metric or another. Raises InputError if the questions differ."""
    before, after = _same_questions(full, arm, metric)
    return flips(*([mark > 0.5 for mark in marks] for marks in (before, after)))


def _same_questions(first: TaskResult, second: TaskResult, metric: str | None) -> tuple[list[float], list[float]]:
    """Both arms' marks by ``metric``. Raises InputError if a result lacks it or their numbers of questions differ."""
    metric = metric or first.main
    a, b = first.marks.get(metric), second.marks.get(metric)
    if a is None or b is None or len(a) != len(b):
        raise InputError(f"these results have no {metric} of the same questions")
    return a, b
