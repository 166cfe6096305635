"""Long measurements, cell by cell: each result is kept as soon as it is known, and not computed twice.

Measuring knows no files; whoever calls it says how results are kept (``ctplab.disk.kept_in`` a folder, or not at all).
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ctplab.disk import Keep
from ctplab.measure.perplexity import window_nll
from ctplab.measure.tasks.evaluate import TaskResult, asked_from, evaluate
from ctplab.models import Tokenizer
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.progress import Progress
from ctplab.prompts.arms import Arm


def kept_nll(keep: Keep, name: str, arm: Arm, windows: Tensor, *, batch: int, progress: Progress) -> Tensor:
    """(N,) summed NLL of every window, kept under ``name`` for this arm and these windows."""
    key = {"arm": arm.fingerprint, "windows": tensor_fingerprint(windows), "shape": list(windows.shape)}
    kept = keep(name, key, lambda: {"nll": window_nll(arm, windows, batch=batch, progress=progress).tolist()})
    return torch.tensor(kept["nll"], dtype=torch.float64)


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
    progress: Progress,
) -> dict[str, TaskResult]:
    """The arm's results on ``task`` (one, or the members of a group), kept under ``name``."""

    def ask() -> dict[str, Any]:
        found = evaluate(arm, tokenizer, [task], limit=limit, batch=batch, seed=seed, progress=progress)
        return {part: asdict(result) for part, result in found.items()}

    key = {"arm": arm.fingerprint, "task": task, "from": asked_from(task), "limit": limit, "seed": seed}
    kept = keep(name, key, ask)
    return {part: TaskResult.from_json(result) for part, result in kept.items()}
