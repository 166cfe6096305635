"""``transfer``: prompts on models they were not learned on, across corpora and tasks."""

import argparse
from pathlib import Path
from typing import Any

from ctplab.cli.shared import add_command, finish, load_model, manifest_of, say, window_options
from ctplab.errors import InputError


def transfer(options: argparse.Namespace) -> None:
    from ctplab.disk import kept_in, write_json
    from ctplab.formats import prompt_file
    from ctplab.measure.tasks.transferred import transfer_tasks as across_tasks
    from ctplab.measure.transfer import Target, home
    from ctplab.measure.transfer import transfer as across_corpora
    from ctplab.progress import bar
    from ctplab.show import tables

    corpora = list(filter(None, options.corpora.split(",")))
    tasks = list(filter(None, options.tasks.split(",")))
    if not corpora and not tasks:
        raise InputError("give --corpora, --tasks or both")
    sources = {_name(folder, options.prompts): prompt_file.load(folder) for folder in options.prompts}
    if len(sources) < len(options.prompts):
        raise InputError("the same prompt folder is named twice")
    targets = [
        Target(
            _name(model, options.targets),
            home(manifest_of(model) or {"base": model}),
            lambda model=model: load_model(options, model),
        )
        for model in options.targets
    ]
    more: dict[str, Any] = {"batch": options.batch, "force": options.force, "progress": bar}
    if options.out:
        more["keep"] = kept_in(Path(options.out).with_suffix(".cells"))
    tell = say(options)
    result: dict[str, Any] = {"seq_len": options.seq_len, "cells": [], "task_cells": []}
    if corpora:
        cells = across_corpora(
            sources, targets, corpora, seq_len=options.seq_len, limit=options.windows or None, **more
        )
        result["cells"] = [cell.to_json() for cell in cells]
        for name in corpora:
            tell(f"{name}: perplexity, and the change in nats a token against no prompt [95%]")
            tell(tables.matrix_table([cell for cell in cells if cell.corpus == name]))
    if tasks:
        asked = across_tasks(sources, targets, tasks, limit=options.limit or None, seed=options.seed, **more)
        result["task_cells"] = [cell.to_json() for cell in asked]
        for name in dict.fromkeys(cell.task for cell in asked):
            mine = [cell for cell in asked if cell.task == name]
            tell(f"{name}: {mine[0].metric} in % [95%] of {mine[0].n} questions; points against no prompt, McNemar")
            tell(tables.task_matrix_table(mine))
    if options.out:
        write_json(result, Path(options.out))
    finish(options, result)


def _name(folder: str, among: list[str]) -> str:
    """The folder's last part, or all of it where that is not unique."""
    last = Path(folder).name
    return last if [Path(other).name for other in among].count(last) == 1 else folder


def register(commands: Any) -> None:
    """Add the subcommand of this file."""
    sub = add_command(commands, transfer, "prompts of one model on others: the source x target matrix")
    sub.add_argument("--prompts", required=True, nargs="+", metavar="DIR")
    sub.add_argument("--targets", required=True, nargs="+", metavar="MODEL")
    sub.add_argument("--corpora", default="", help="names, separated by commas")
    sub.add_argument("--tasks", default="", help="atlas, lm-eval's by name, or YAML files, separated by commas")
    sub.add_argument("--limit", type=int, default=0, help="the first N questions of each task only")
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument("--out", metavar="FILE", help="write JSON here; cells are kept beside it and not computed twice")
    window_options(sub, default_length=256)
