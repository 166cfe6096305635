"""``cut``: a shorter prompt made of the rows that matter, and what the cut costs."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.latency import numbers
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, attach, finish, load_full, load_model, say, seq_len
from ctplab.cli.worth import prompt_options
from ctplab.disk import kept_in
from ctplab.errors import InputError
from ctplab.formats.prompt_file import MANIFEST, SavedPrompt, shorter, write
from ctplab.measure.cuts import WAYS, order
from ctplab.progress import bar
from ctplab.prompts.prefix import none
from ctplab.show import row_tables


def cut(options: argparse.Namespace) -> None:
    """Write a prompt for every length and way; score all on the test split. The rows are chosen on the validation."""
    saved, out = ctp.load_prompt(options.prompt), Path(options.out)
    lengths, ways = numbers(options.keep, "--keep"), list(filter(None, options.by.split(",")))
    if not ways or not set(ways) <= set(WAYS):
        raise InputError(f"--by takes {', '.join(WAYS)}, not {options.by!r}")
    if not all(0 < n < saved.prefix.k for n in lengths):
        raise InputError(f"--keep takes numbers from 1 to {saved.prefix.k - 1}, less than the prompt has rows")
    others = {folder: ctp.load_prompt(folder) for folder in options.beside}
    model, tokenizer = load_model(options, options.model)
    for each in (saved, *others.values()):
        attach(options, options.model, each, model, tokenizer)
    full = load_full(options, options.full, model, tokenizer) if options.full else None
    length = seq_len(model, options.seq_len, max(each.prefix.k for each in (saved, *others.values())))
    text = ctp.corpus(options.corpus, tokenizer, length, loss=options.loss)
    how: dict[str, Any] = {"batch": options.batch, "progress": bar}
    prefixes = {"none": none(model), "whole": saved.prefix}
    for way in ways:
        keep = kept_in(out / "chosen")
        arm = ctp.Arm("soft", model, saved.prefix)
        rows = order(way, arm, text.validation, seed=options.seed, limit=options.choose, keep=keep, **how)
        for n in lengths:
            name = f"k{n}-{way}"
            made_from = {"from": options.prompt, "by": way, "corpus": text.name, "windows": options.choose}
            prefixes[name] = written(shorter(saved, rows[:n], **made_from), out / name).prefix
    if taken := {"full", *prefixes} & set(others):
        raise InputError(f"write ./{taken.pop()}: the table has a prompt of that name")
    prefixes |= {folder: each.prefix for folder, each in others.items()}
    arms = [ctp.Arm(name, model, prefix) for name, prefix in prefixes.items()]
    if full is not None:
        arms.insert(0, ctp.Arm("full", full, none(full)))
    how |= {"limit": options.windows or None, "keep": kept_in(out / "scores")}
    scores = {arm.name: ctp.window_scores(arm, text.test, name=arm.name, **how) for arm in arms}
    found = []
    for arm in arms:
        own = scores[arm.name]
        row: dict[str, Any] = {"prompt": arm.name, "k": arm.prefix.k, "ppl": own.score.ppl}
        row["change"] = asdict(ctp.change(own, scores["whole"], seed=options.seed))
        if full is not None:
            closed = ctp.recovery(scores["full"], scores["none"], own, seed=options.seed)
            row["recovery"] = asdict(closed)
        found.append(row)
    say(options)(row_tables.cuts_table(found))
    finish(options, {"corpus": text.name, "seq_len": length, "prompts": found})


def written(prompt: SavedPrompt, folder: Path) -> SavedPrompt:
    """Write the prompt if it is not there yet. Raises InputError if another one is."""
    if (folder / MANIFEST).exists():
        if ctp.load_prompt(folder).info.get("cut") != prompt.info["cut"]:
            raise InputError(f"{folder} holds another prompt: choose another --out")
    else:
        write(prompt.prefix, prompt.initial, prompt.info, folder)
    return prompt


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "cut", cut, "a shorter prompt made of the rows that matter, and what the cut costs")
    prompt_options(sub)
    sub.add_argument("--keep", default="50,25", metavar="N", help="rows to keep, separated by commas (50,25)")
    sub.add_argument("--by", default=",".join(WAYS), metavar="WAYS", help=f"what stays (default: {','.join(WAYS)})")
    sub.add_argument(
        "--choose", type=at_least(1), default=32, metavar="N", help="validation windows that choose the rows (32)"
    )
    sub.add_argument("--full", metavar="MODEL", help="the uncompressed model, for the share of the gap")
    sub.add_argument("--beside", nargs="+", default=[], metavar="DIR", help="prompts to score too: short ones, say")
    sub.add_argument("--out", required=True, metavar="DIR", help="a folder for each prompt; run again to go on")
