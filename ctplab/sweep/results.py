"""The results of a sweep: a row for every prompt (or level without a prompt) and scored corpus."""

import math
from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctplab.disk import write_json
from ctplab.errors import InputError
from ctplab.formats.checkpoint import read_manifest
from ctplab.measure.stats import recovery
from ctplab.runs import store
from ctplab.runs.stale import weights_id
from ctplab.scores import WindowScores
from ctplab.sweep.cells import Cell, short
from ctplab.sweep.plan import Plan
from ctplab.sweep.steps import result_path
from ctplab.text_files import read_json


def rows(plan: Plan, done: Set[Cell]) -> list[dict[str, Any]]:
    """Perplexity of the full model, the compressed model and the prompt (if any), and the share of the NLL gap that the
    prompt closes. A value is None if its cell is not done, or if compression left no gap.
    """
    cells = [each.job.cell for each in plan.planned if each.job.cell.step == "score" and each.job.cell.spec]
    prompted = {(cell.model, cell.tag, cell.text) for cell in cells if cell.prompt}
    shown = [cell for cell in cells if cell.prompt or (cell.model, cell.tag, cell.text) not in prompted]
    return [_row(cell, plan, done) for cell in shown]


def _row(cell: Cell, plan: Plan, done: Set[Cell]) -> dict[str, Any]:
    compressed = replace(cell, prompt=None, recipe=None, corpus=None)
    arms = {"full": replace(compressed, spec=None), "compressed": compressed}
    arms |= {"soft": cell} if cell.prompt else {}
    scores = {name: _scores(arm, plan) if arm in done else None for name, arm in arms.items()}
    row: dict[str, Any] = {
        "model": short(cell.model),
        "tag": cell.tag,
        "weights": _weights(cell, plan),
        "prompt": cell.prompt,
        "learned_on": short(cell.corpus) if cell.corpus else None,
        "seed": cell.recipe.seed if cell.recipe else None,
        "scored_on": short(cell.text or ""),
        **{name: None if own is None else own.score.ppl for name, own in scores.items()},
    }
    full, small, soft = (scores.get(name) for name in ("full", "compressed", "soft"))
    if full is None or small is None or soft is None:
        return {"soft": None, **row, "recovery": None}
    share = recovery(full, small, soft)
    return {**row, "recovery": None if math.isnan(share.value) else asdict(share)}


def _weights(cell: Cell, plan: Plan) -> dict[str, str] | None:
    """Where the level's weights lie and which they are, so that a table can tell later if they have changed."""
    folder = store.Store(plan.settings.root, cell.model).compressed(cell.tag)
    try:
        return {"folder": str(folder.relative_to(plan.settings.root)), "id": weights_id(read_manifest(folder))}
    except InputError:
        return None


def _scores(cell: Cell, plan: Plan) -> WindowScores:
    """Read the scores that the cell kept."""
    return WindowScores.from_json(read_json(result_path(cell, plan.settings.root))["result"])


def write(plan: Plan, found: list[dict[str, Any]], failures: dict[str, str]) -> Path:
    """Write the rows to the file that the dashboard and scripts read; returns its path."""
    path = store.sweep(plan.settings.root, plan.name)
    write_json({"name": plan.name, "grid": str(plan.grid), "rows": found, "failed": failures}, path)
    return path
