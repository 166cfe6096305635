"""Table 8: accuracy of the full, the compressed and the prompted model at six levels."""

from dataclasses import asdict
from typing import Any

from ctplab.disk import kept_in
from ctplab.measure.tasks.evaluate import TaskResult, compare, kept_tasks
from ctplab.paper import printed
from ctplab.paper.bench import Bench
from ctplab.paper.recipes import OTHER, TASKS
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import none


def table_8(bench: Bench, limit: int | None) -> list[dict[str, Any]]:
    """Return a dict for every level, method and task, in the paper's order.

    Prompted rows include the paired test against no prompt. The paper's four tasks include its accuracies. ``limit``
    takes only the first questions.
    """
    rows = []
    for level in ("full", *(row.level for row in OTHER["table8"])):
        tag, model = bench.model(level)
        alone = _ask(bench, tag, Arm("none", model, none(model)), limit)
        rows += [_row(level, "none", task, result) for task, result in alone.items()]
        if level == "full":
            continue
        prompt = bench.prompt(level).prefix
        soft = _ask(bench, tag, Arm("soft", model, prompt), limit)
        for task, result in soft.items():
            rows.append(_row(level, "soft", task, result) | {"against_none": asdict(compare(result, alone[task]))})
    return rows


def _ask(bench: Bench, tag: str, arm: Arm, limit: int | None) -> dict[str, TaskResult]:
    """The arm's results, task by task. Each is kept in the run folder as soon as it is known."""
    keep, tokenizer = kept_in(bench.study.store.tasks(tag)), bench.study.tokenizer
    found: dict[str, TaskResult] = {}
    for task in bench.scale.tasks:
        bench.say(f"{bench.name} {tag}: {task}, {arm.name}")
        found |= kept_tasks(
            keep, f"{arm.name}--{task}", arm, tokenizer, task,
            limit=limit, batch=8, seed=bench.seed, progress=bench.study.progress,
        )  # fmt: skip
    return found


def _row(level: str, method: str, task: str, result: TaskResult) -> dict[str, Any]:
    theirs = None
    if task in TASKS:
        what = printed.TASKS[TASKS.index(task)]
        (theirs,) = (v for v in printed.TABLES["table8"].values if (v.level, v.method, v.what) == (level, method, what))
    return {
        "level": level, "method": method, "task": task, "metric": result.main, "ours": asdict(result.share),
        "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
        "printed": theirs.printed if theirs else None, "printed_stderr": theirs.stderr if theirs else None,
    }  # fmt: skip
