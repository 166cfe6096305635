"""``sweep``: grids of studies, here or on a Ray cluster."""

import argparse
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctplab.cli.parsing import in_flags
from ctplab.cli.shared import add_command, finish, loss_option, say
from ctplab.errors import InputError
from ctplab.progress import bar, by_size
from ctplab.show import tables
from ctplab.sweep import local, log, ray, results
from ctplab.sweep.cells import Settings
from ctplab.sweep.grid import read
from ctplab.sweep.plan import Plan, make_plan


def sweep(options: argparse.Namespace) -> None:
    """Plan the cells of a file, run those that are not done, and show what all of them gave."""
    file, tell, workers = Path(options.file), say(options), 1
    grid = read(file, options.seed)
    grid = replace(grid, loss=options.loss or grid.loss)
    settings = Settings(
        Path(options.out).resolve(),
        grid.seq_len,
        grid.windows,
        grid.calibration,
        options.device,
        options.dtype,
        grid.loss,
    )
    with ExitStack() as held:
        if not options.dry_run:
            held.enter_context(log.alone(settings.root))
        if options.ray and not options.dry_run:
            held.enter_context(ray.connected(options.ray))
            workers = ray.slots()
        found = make_plan(file.stem, grid, settings, progress=bar)
        tell(_in_words(found, workers))
        tell(tables.plan_table(found.by_step()))
        if options.dry_run:
            finish(options, {"plan": found.by_step(), "cells": _cells(found, {})})
            return
        outcomes = held.enter_context(
            closing(ray.run_on_ray(found.jobs) if options.ray else local.run_here(found.jobs))
        )
        ended = {}
        try:
            for outcome in by_size(outcomes, total=sum(job.tokens for job in found.jobs), label="sweep"):
                ended[outcome.cell] = outcome
        finally:  # also of a sweep that was interrupted
            done = {each.job.cell for each in found.planned if each.done}
            done |= {cell for cell, outcome in ended.items() if not outcome.error}
            failures = {cell.name: outcome.error for cell, outcome in ended.items() if outcome.error}
            rows = results.rows(found, done)
            kept = results.write(found, rows, failures)
    tell(tables.sweep_table(rows))
    for name, error in failures.items():
        tell(f"failed: {name}: {in_flags(error, options.parser.flags)}")
    tell(f"kept in {kept}")
    result = {"plan": found.by_step(), "cells": _cells(found, ended), "rows": rows, "failed": failures}
    finish(options, {**result, "out": str(kept)})
    if failures:
        raise InputError(f"{len(failures)} of {len(found.planned)} cells failed; the same command tries them again")


def _in_words(found: Plan, workers: int) -> str:
    """The plan in one line: how many cells, how many are done, and the time that the others take."""
    replaced = sum(each.replaces for each in found.planned)
    seconds = [row["seconds"] for row in found.by_step().values()]
    known = sum(value for value in seconds if value is not None)
    text = f"{found.name}: {found.grid}: {len(found.planned)} cells, {len(found.planned) - len(found.jobs)} done"
    if found.jobs and known:
        text += f"; about {known / workers:.0f} s" + (f" on {workers} workers" if workers > 1 else "")
        text += " for the steps measured so far" if None in seconds else ""
    return text + (f"; {replaced} take the place of results of other settings" if replaced else "")


def _cells(found: Plan, ended: dict[Any, Any]) -> list[dict[str, Any]]:
    """Every cell and its state: ``done`` before, ``ran`` now, ``failed`` or ``waits``."""
    cells = []
    for each in found.planned:
        cell, outcome = each.job.cell, ended.get(each.job.cell)
        state = "done" if each.done else "waits"
        if outcome is not None:
            state = "failed" if outcome.error else "ran" if outcome.computed else "done"
        seconds = outcome.seconds if outcome else None
        cells.append(
            {"cell": cell.name, "step": cell.step, "state": state, "tokens": each.job.tokens, "seconds": seconds}
        )
    return cells


def register(commands: Any) -> None:
    """Add the command."""
    about = "a grid of studies from a TOML file: models, specs, prompts, corpora, seeds"
    sub = add_command(commands, "sweep", sweep, about)
    sub.add_argument("file", metavar="FILE")
    sub.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, host:port, or local (one of its own)"
    )
    loss_option(sub)
    sub.add_argument("--dry-run", action="store_true", help="show the plan and its cost, and stop")
    sub.add_argument("--out", default="runs", metavar="DIR", help="run folders, shared with demo and reproduce")
