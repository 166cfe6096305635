"""``demo``: the main job on the embedded model."""

import argparse
from pathlib import Path
from typing import Any

from ctplab import demo as main_job
from ctplab.cli.shared import add_command, finish, say


def demo(options: argparse.Namespace) -> None:
    """Run the demo, or what an earlier run left to do."""
    chosen = {"device": options.device, "dtype": options.dtype, "seed": options.seed}
    finish(options, main_job.run_demo(Path(options.out), say=say(options), **chosen))


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "demo", demo, "the main job on the embedded model, in four minutes")
    sub.add_argument("--out", default="runs", metavar="DIR")
