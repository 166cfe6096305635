"""``demo``: whole pipelines."""

import argparse
from pathlib import Path
from typing import Any

from ctplab.cli.shared import add_command, finish, say


def demo(options: argparse.Namespace) -> None:
    from ctplab import demo

    result = demo.run_demo(Path(options.out), device=options.device, seed=options.seed, say=say(options))
    finish(options, result)


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, demo, "the main job on the embedded model, in four minutes")
    sub.add_argument("--out", default="runs", metavar="DIR")
