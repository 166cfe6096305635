"""``reproduce``: the paper's tables and figures, ours beside its own."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, corpora_option, finish, loss_option, say
from ctplab.disk import write_json, write_text
from ctplab.errors import InputError
from ctplab.measure.latency import LatencyPoint
from ctplab.paper import figures, printed
from ctplab.paper.perplexities import cells
from ctplab.paper.recipes import CORPORA, EMBEDDED, PAPER, PERPLEXITIES, TASKS, Scale, chosen, needs
from ctplab.paper.reproduce import reproduce as recipe
from ctplab.show import tables
from ctplab.show.axes import save
from ctplab.show.latency import draw_latency
from ctplab.show.matrices import draw_transfer
from ctplab.show.nearness import draw_nearness


def reproduce(options: argparse.Namespace) -> None:
    """List the tables and figures, say what one needs, or run it and put it beside the paper's numbers."""
    captions = {name: table.caption for name, table in printed.TABLES.items()} | printed.FIGURES
    tell = say(options)
    if options.name == "list":
        for name, caption in captions.items():
            tell(f"{name:8} {caption}")
        finish(options, captions)
        return
    if options.name not in captions:
        raise InputError(f"unknown table or figure {options.name!r}; 'ctplab reproduce list' names them all")
    scale = _scale(options)
    needed = needs(chosen(options.name, scale), scale)
    tell(f"{options.name}: {captions[options.name]}\nneeds {needed}")
    if options.dry_run:
        finish(options, {"needs": needed})
        return
    found = recipe(
        options.name,
        scale,
        Path(options.out),
        device=options.device,
        dtype=options.dtype,
        seed=options.seed,
        limit=options.limit or None,
        say=tell,
    )
    text = _table(options.name, found)
    tell(text)
    folder = Path(options.out) / "reproduce" / options.name
    write_text(f"# {options.name}: {captions[options.name]}\n\n{text}\n", folder / "table.md")
    save(_figure(options.name, found), folder / "figure.png")
    result = {"name": options.name, "caption": captions[options.name], "rows": found}
    write_json(result, folder / "result.json")
    tell(f"table, figure and JSON in {folder}")
    finish(options, result)


def _table(name: str, found: Any) -> str:
    if name in PERPLEXITIES:
        return tables.reproduced_table(found)
    if name == "table8":
        return tables.accuracy_table(found)
    if name == "figure8":
        return tables.records_table([{"rows": rows, "mean cosine": mean} for rows, mean in found["mean"].items()])
    return tables.records_table(found)


def _figure(name: str, found: Any) -> Any:
    if name == "figure8":
        return draw_nearness(found, ceiling=True)
    if name == "figure5":
        return draw_latency([LatencyPoint.from_json(row) for row in found])
    if name == "figure4":
        return draw_transfer(cells(found))
    if name == "figure1":
        return figures.answers(name, found)
    if name == "table8":
        return figures.accuracies(name, found)
    if name in ("figure2", "figure3"):
        return figures.by_level(name, found)
    return figures.beside_the_paper(name, found)


def _scale(options: argparse.Namespace) -> Scale:
    scale = EMBEDDED if options.scale == "embedded" else PAPER
    if options.model:
        scale = replace(scale, model=options.model, tasks=scale.tasks if options.model == "atlas" else TASKS)
    if options.corpus:
        if len(options.corpus) > len(CORPORA):
            raise InputError(f"--corpus takes one to three names, for {', '.join(CORPORA)}")
        scale = replace(scale, corpora=dict(zip(CORPORA, options.corpus, strict=False)))
    if options.tasks:
        scale = replace(scale, tasks=tuple(options.tasks.split(",")))
    if options.loss:
        scale = replace(scale, loss=options.loss)
    if options.seq_len:
        scale = replace(scale, seq_len=options.seq_len)
    if options.windows:
        scale = replace(scale, windows=options.windows)
    prompt = {key: value for key, value in (("steps", options.steps), ("tokens", options.tokens)) if value}
    return replace(scale, prompt=replace(scale.prompt, **prompt))


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "reproduce", reproduce, "a table or figure of the paper: printed, corrected, and ours")
    sub.add_argument("name", help="table1 .. table9, figure1 .. figure8, or list")
    sub.add_argument("--scale", choices=("paper", "embedded"), default="paper")
    sub.add_argument("--model", help="run the recipe on this model instead")
    corpora_option(
        sub, "--corpus", about="one to three corpora, separated by commas, in place of C4, Wikitext2 and PTB"
    )
    loss_option(sub)
    sub.add_argument("--tasks", help="table8: these instead, by name or YAML file (embedded: atlas, its own questions)")
    sub.add_argument("--seq-len", type=at_least(0), default=0)
    sub.add_argument("--windows", type=at_least(0), default=0, help="score the first N windows only")
    sub.add_argument("--steps", type=at_least(0), default=0, help="steps of learning a prompt or an adapter")
    sub.add_argument("--tokens", type=at_least(0), default=0, help="prompt tokens where the paper has 100")
    sub.add_argument("--limit", type=at_least(0), default=0, help="table8: the first N questions of a task only")
    sub.add_argument("--dry-run", action="store_true", help="say what it needs, and stop")
    sub.add_argument("--out", default="runs", metavar="DIR")
