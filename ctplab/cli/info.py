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
        if text := in_words(value):
            say(options)(f"{key.replace('_', ' ')}: {text}")
    finish(options, result)


def in_words(value: Any) -> str:
    """What a manifest says, for people: numbers with six digits, lists with commas; empty for what is not set."""
    if isinstance(value, dict):
        told = {key: in_words(item) for key, item in value.items()}
        return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in told.items() if text)
    if isinstance(value, list):
        return ", ".join(filter(None, map(in_words, value)))
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, int):
        return f"{value:,}" if value >= 1e6 else str(value)  # ids of tokens stay plain
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "info", info, "what a model or prompt folder holds")
    sub.add_argument("path")
