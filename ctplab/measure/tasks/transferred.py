"""The transfer matrix over tasks (Table 8): the prompts and targets of ``transfer.py`` answer questions.

A cell is (source, target, task): the share of right answers with its interval, and the paired test against the same
target without a prompt. Each cell is kept as soon as it is known. If a pair does not fit, its cell says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.formats.prompt_file import SavedPrompt, attach
from ctplab.measure.stats import Interval
from ctplab.measure.tasks.evaluate import Paired, compare, kept_tasks
from ctplab.measure.transfer import Target, at_home, check_names
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm


@dataclass(frozen=True)
class TaskCell:
    """One cell. If a pair was not measured, ``refused`` says why and there are no numbers."""

    source: str
    target: str
    task: str
    diagonal: bool
    """True if the prompt was learned on this target."""
    metric: str | None = None
    share: Interval | None = None
    """Share of right answers by that metric, with its 95% interval."""
    n: int = 0
    against_none: Paired | None = None
    """The target with the prompt against the target without it. None for the source ``none``."""
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def transfer_tasks(
    sources: Mapping[str, SavedPrompt],
    targets: Sequence[Target],
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    start: str = "auto",
    raw: bool = False,
    force: bool = False,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> list[TaskCell]:
    """Measure all cells, target by target: first each target without a prompt, then with every source's prompt.

    ``tasks``, ``start`` and ``raw`` are as in :func:`ctplab.measure.tasks.evaluate.evaluate`; ``limit`` takes the first
    questions of each.
    """
    check_names(sources, targets)
    cells = []
    for target in targets:
        model, tokenizer = target.load()
        for task in tasks:
            ask = partial(
                kept_tasks, keep, tokenizer=tokenizer, task=task, limit=limit, batch=batch, seed=seed, start=start,
                raw=raw, progress=progress,
            )  # fmt: skip
            plain = ask(f"none--{target.name}--{task}", Arm("none", model, prefix.none(model)))
            for part, alone in plain.items():
                n = len(alone.marks[alone.main])
                cells.append(TaskCell("none", target.name, part, False, alone.main, alone.share, n))
            for source, saved in sources.items():
                diagonal = at_home(saved, target, model)
                try:
                    attach(saved, model, tokenizer, force=force)
                    found = ask(f"{source}--{target.name}--{task}", Arm(source, model, saved.prefix))
                except InputError as error:
                    cells += [TaskCell(source, target.name, part, diagonal, refused=str(error)) for part in plain]
                    continue
                for part, result in found.items():
                    paired, n = compare(result, plain[part]), len(result.marks[result.main])
                    cells.append(TaskCell(source, target.name, part, diagonal, result.main, result.share, n, paired))
    return cells
