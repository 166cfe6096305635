"""``info``: what a folder holds."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import add_command, finish, say
from ctplab.formats.checkpoint import describe
from ctplab.formats.prompt_file import MANIFEST


def info(options: argparse.Namespace) -> None:
    """Tell what the manifest of a model or prompt says."""
    if (Path(options.path) / MANIFEST).exists():
        result = {key: value for key, value in ctp.load_prompt(options.path).info.items() if key != "curve"}
    else:
        result = describe(options.path)
    for key, value in result.items():
        say(options)(f"{key}: {value}")
    finish(options, result)


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "info", info, "what a model or prompt folder holds")
    sub.add_argument("path")
