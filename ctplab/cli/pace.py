"""``pace``: how many steps prompts took to close a share of the gap, a warm start against a cold one."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least, real
from ctplab.cli.shared import add_command, finish, load_full, load_model, say
from ctplab.errors import InputError
from ctplab.progress import bar
from ctplab.show.axes import check_picture, save
from ctplab.show.gaps import pace_table
from ctplab.show.healing import draw_pace


def pace(options: argparse.Namespace) -> None:
    """Read the learning curves of --prompts as shares of the gap between --compressed and --full."""
    if not all(0 < share < 1 for share in options.reach):
        raise InputError("--reach takes shares between 0 and 1, such as 0.25 for 25%")
    if options.figure:
        check_picture(Path(options.figure))
    small, tokenizer = load_model(options, options.compressed)
    full = load_full(options, options.full, small, tokenizer)
    prompts = {folder: ctp.load_prompt(folder) for folder in options.prompts}
    found = ctp.paces(full, small, prompts, tokenizer, batch=options.batch, progress=bar)
    say(options)(pace_table(found, options.reach))
    if options.figure:
        save(draw_pace(found), Path(options.figure))
    rows = [
        {
            "name": each.name,
            "points": [list(point) for point in each.points],
            "best": each.best,
            "steps_to": {f"{share:g}": each.steps_to(share) for share in options.reach},
        }
        for each in found
    ]
    finish(options, {"prompts": rows})


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "pace", pace, "steps that prompts took to close shares of the gap: warm against cold")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL", help="what the prompts were learned on")
    sub.add_argument("--prompts", required=True, nargs="+", metavar="DIR", help="prompts with their learning curves")
    sub.add_argument(
        "--reach", nargs="+", type=real, default=[0.1, 0.2, 0.3, 0.4, 0.5], metavar="SHARE", help="0.1 0.2 0.3 0.4 0.5"
    )
    sub.add_argument("--batch", type=at_least(1), default=16, help="windows a forward pass")
    sub.add_argument("--figure", metavar="FILE", help="draw the curves: .png, .pdf or .svg")
