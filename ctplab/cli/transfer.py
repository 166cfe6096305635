"""``transfer``: prompts on models they were not learned on, across corpora and tasks."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ctplab as ctp
from ctplab.cli.numbers import at_least, finite
from ctplab.cli.parsing import in_flags
from ctplab.cli.shared import (
    add_command,
    corpora_option,
    finish,
    load_model,
    loss_option,
    manifest_of,
    note,
    say,
    start_option,
    window_options,
)
from ctplab.disk import check_is_json, write_json
from ctplab.errors import InputError
from ctplab.measure.tasks.transferred import TaskCell
from ctplab.measure.transfer import TransferCell, home
from ctplab.models import Model, Tokenizer
from ctplab.progress import bar
from ctplab.prompts.arms import check_dtypes
from ctplab.show import tables
from ctplab.show.gaps import gaps_table

C = TypeVar("C", TransferCell, TaskCell)


def transfer(options: argparse.Namespace) -> None:
    """Try every prompt on every target."""
    tasks = list(filter(None, options.tasks.split(",")))
    if not options.corpora and not tasks:
        raise InputError("give --corpora, --tasks or both")
    sources = {_name(folder, options.prompts): ctp.load_prompt(folder) for folder in options.prompts}
    if len(sources) < len(options.prompts):
        raise InputError("the same prompt folder is named twice")
    dtypes: set[str] = set()

    def load(name: str) -> tuple[Model, Tokenizer]:
        model, tokenizer = load_model(options, name)
        dtypes.add(check_dtypes([model], dtypes))
        return model, tokenizer

    targets = [
        ctp.Target(_name(model, options.targets), home(manifest_of(model) or {"base": model}), partial(load, model))
        for model in options.targets
    ]
    known: dict[str, Any] = {"full": load(options.full)[0] if options.full else None}
    known["learned_on"] = [load_model(options, name, packed=True)[0] for name in options.sources]
    more: dict[str, Any] = {"batch": options.batch, "force": options.force, "progress": bar}
    if options.out:
        check_is_json(Path(options.out))
        more["keep"] = ctp.kept_in(Path(options.out).with_suffix(".cells"))
    tell = say(options)
    result: dict[str, Any] = {"seq_len": options.seq_len, "start": options.start, "cells": [], "task_cells": []}
    if options.corpora:
        windows: dict[str, Any] = {"seq_len": options.seq_len, "limit": options.windows or None}
        found = ctp.transfer(sources, targets, options.corpora, loss=options.loss, **more, **windows, **known)
        cells = [_in_flags(cell, options) for cell in found]
        result["cells"] = [cell.to_json() for cell in cells]
        for name in sources:
            if options.sources and all(cell.distance is None for cell in cells if cell.source == name):
                note(f"{name} was learned on none of --sources, so there is no distance from its weights")
        for target in targets if options.full else ():
            mine = [cell for cell in cells if cell.target == target.name and cell.change is not None]
            if mine and all(cell.recovery is None for cell in mine):
                note(f"{target.name} has other embeddings than {options.full}, so there is no share of its gap")
        for name in options.corpora:
            tell(f"{name}: perplexity, and the change in nats a token against no prompt [95%]")
            mine = [cell for cell in cells if cell.corpus == name]
            tell(gaps_table(mine) if options.full or options.sources else tables.matrix_table(mine))
    if tasks:
        found = ctp.transfer_tasks(
            sources,
            targets,
            tasks,
            limit=options.limit or None,
            seed=options.seed,
            start=options.start,
            raw=options.raw,
            **more,
        )
        asked = [_in_flags(cell, options) for cell in found]
        result["task_cells"] = [cell.to_json() for cell in asked]
        for name in dict.fromkeys(cell.task for cell in asked):
            mine = [cell for cell in asked if cell.task == name]
            tell(f"{name}: {mine[0].metric} in % [95%] of {mine[0].n} questions; points against no prompt, McNemar")
            tell(tables.task_matrix_table(mine))
    result["dtype"] = dtypes.pop()  # the only one
    if options.out:
        write_json(finite(result), Path(options.out))
    finish(options, result)


def _name(folder: str, among: list[str]) -> str:
    """The folder's last part, or all of it if another folder ends alike."""
    last = Path(folder).name
    return last if [Path(other).name for other in among].count(last) == 1 else folder


def _in_flags(cell: C, options: argparse.Namespace) -> C:
    """The cell, with the reason of a refusal in the words of the command line."""
    return replace(cell, refused=in_flags(cell.refused, options.parser.flags)) if cell.refused else cell


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "transfer", transfer, "prompts of one model on others: the source x target matrix")
    sub.add_argument("--prompts", required=True, nargs="+", metavar="DIR")
    sub.add_argument("--targets", required=True, nargs="+", metavar="MODEL")
    sub.add_argument(
        "--full", metavar="MODEL", help="the uncompressed model: shows the share of the gap that is closed"
    )
    sub.add_argument(
        "--sources", nargs="+", default=[], metavar="MODEL",
        help="models that the prompts were learned on: shows how far the targets' weights are from theirs",
    )  # fmt: skip
    corpora_option(sub, "--corpora")
    loss_option(sub)
    sub.add_argument("--tasks", default="", help="atlas, lm-eval's by name, or YAML files, separated by commas")
    start_option(sub)
    sub.add_argument("--raw", action="store_true", help="tasks: no chat template where answers are generated")
    sub.add_argument("--limit", type=at_least(0), default=0, help="the first N questions of each task only")
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument("--out", metavar="FILE", help="write JSON here; cells are kept beside it and not computed twice")
    window_options(sub, default_length=256)
