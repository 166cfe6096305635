"""``demo``: the main job on the embedded model, or the tour of a real one."""

import argparse
from pathlib import Path
from typing import Any

from ctplab.cli.shared import add_command, finish, say
from ctplab.demo import embedded, tour
from ctplab.errors import InputError

RUNS = {"atlas": embedded.run_demo, tour.NAME: tour.run_tour}


def demo(options: argparse.Namespace) -> None:
    """Run the demo, or what an earlier run left to do."""
    if options.model not in RUNS:
        raise InputError(
            f"demo runs on {' and '.join(RUNS)}; for any other model there are 'ctplab compress', 'learn' and 'recover'"
        )
    chosen = {"device": options.device, "dtype": options.dtype, "seed": options.seed}
    finish(options, RUNS[options.model](Path(options.out), say=say(options), **chosen))


def register(commands: Any) -> None:
    """Add the command."""
    about = "the main job: on the embedded model in four minutes, on SmolLM2-135M (93 MB) in ten"
    sub = add_command(commands, "demo", demo, about)
    sub.add_argument("--model", default="atlas", metavar="NAME", help="atlas (embedded) or smollm2, fetched if needed")
    sub.add_argument("--out", default="runs", metavar="DIR")
