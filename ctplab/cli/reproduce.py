"""``reproduce``: the paper's tables and figures, ours beside its own."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctplab.cli.shared import add_command, finish, say
from ctplab.errors import InputError


def reproduce(options: argparse.Namespace) -> None:
    from ctplab import paper, tables
    from ctplab import reproduce as recipes
    from ctplab import reproduce_other as other
    from ctplab.compress.checkpoint import write_json
    from ctplab.plots import reproduced

    captions = {name: table.caption for name, table in paper.TABLES.items()} | paper.FIGURES
    tell = say(options)
    if options.name == "list":
        for name, caption in captions.items():
            tell(f"{name:8} {caption}")
        finish(options, captions)
        return
    if options.name not in captions:
        raise InputError(f"unknown table or figure {options.name!r}; 'ctplab reproduce list' names them all")
    scale = _scale(options)
    folder = Path(options.out) / "reproduce" / options.name
    rows = recipes.PERPLEXITIES.get(options.name)
    if rows is not None:
        tell(f"{options.name}: {captions[options.name]}\nneeds {recipes.needs(rows, scale)}")
        if options.dry_run:
            finish(options, {"needs": recipes.needs(rows, scale)})
            return
        found: Any = recipes.measure(rows, scale, Path(options.out), device=options.device, seed=options.seed, say=tell)
        text = tables.reproduced_table(found)
    else:
        tell(f"{options.name}: {captions[options.name]}")
        if options.dry_run:
            raise InputError("--dry-run is for the perplexity recipes")
        limit = options.limit or None
        found = other.run(options.name, scale, Path(options.out), device=options.device, seed=options.seed, limit=limit)
        text = tables.records_table(found) if isinstance(found, list) else ""
    tell(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(f"# {options.name}: {captions[options.name]}\n\n{text}\n")
    reproduced(options.name, found, folder / "figure.png")
    result = {"name": options.name, "caption": captions[options.name], "rows": found}
    write_json(folder / "result.json", result)
    tell(f"table, figure and JSON in {folder}")
    finish(options, result)


def _scale(options: argparse.Namespace) -> Any:
    from ctplab.reproduce import CORPORA, EMBEDDED, PAPER

    scale = EMBEDDED if options.scale == "embedded" else PAPER
    if options.model:
        scale = replace(scale, model=options.model)
    if options.corpus:
        names = options.corpus.split(",")
        if len(names) > len(CORPORA):
            raise InputError(f"--corpus takes one to three names, for {', '.join(CORPORA)}")
        scale = replace(scale, corpora=dict(zip(CORPORA, names, strict=False)))
    if options.seq_len:
        scale = replace(scale, seq_len=options.seq_len)
    if options.windows:
        scale = replace(scale, windows=options.windows)
    prompt = {key: value for key, value in (("steps", options.steps), ("tokens", options.tokens)) if value}
    return replace(scale, prompt=replace(scale.prompt, **prompt))


def register(commands: Any) -> None:
    """Add the subcommand of this file."""
    sub = add_command(commands, reproduce, "a table or figure of the paper: printed, corrected, and ours")
    sub.add_argument("name", help="table1 .. table9, figure1 .. figure8, or list")
    sub.add_argument("--scale", choices=("paper", "embedded"), default="paper")
    sub.add_argument("--model", help="run the recipe on this model instead")
    sub.add_argument("--corpus", help="one to three corpora in place of C4, Wikitext2 and PTB")
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--steps", type=int, default=0, help="steps of learning a prompt")
    sub.add_argument("--tokens", type=int, default=0, help="prompt tokens where the paper has 100")
    sub.add_argument("--limit", type=int, default=0, help="table8: the first N questions of a task only")
    sub.add_argument("--dry-run", action="store_true", help="say what it needs, and stop")
    sub.add_argument("--out", default="runs", metavar="DIR")
