"""``export prompt --to tokens`` and ``export model --to gguf``: prompts and models that other servers run."""

import argparse
from pathlib import Path

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import finish, note, say
from ctplab.errors import InputError

OPTIONS = {"weights": "dense", "prepend": "always", "pad_to": 64, "reserved": False}
"""What goes with ``--to tokens`` alone, and what it is if not given."""


def add_options(sub: argparse.ArgumentParser) -> None:
    """Add them to ``export prompt``."""
    group = sub.add_argument_group("with --to tokens")
    group.add_argument("--weights", choices=("dense", "gptq", "gptq_v2"), default=OPTIONS["weights"])
    group.add_argument(
        "--prepend", choices=("always", "never"), default=OPTIONS["prepend"], help="never: the caller writes the tokens"
    )
    group.add_argument("--pad-to", type=at_least(1), default=OPTIONS["pad_to"], help="rows become a multiple of this")
    group.add_argument("--reserved", action="store_true", help="first use tokens that the vocabulary keeps free")


def check_options(options: argparse.Namespace) -> None:
    """Raise InputError if they are given with another format."""
    given = [name for name, usual in OPTIONS.items() if getattr(options, name) != usual]
    if options.to != "tokens" and given:
        raise InputError(f"{given[0]}= goes with to='tokens'")


def export_tokens(options: argparse.Namespace) -> None:
    """Write the model with the prompt's rows as tokens."""
    chosen = {name: getattr(options, name) for name in (*OPTIONS, "dtype", "force")}
    result = ctp.export_tokens(ctp.load_prompt(options.prompt), options.model, Path(options.out), **chosen)
    for warning in result["warnings"]:
        note(warning)
    say(options)(
        f"{result['k']} tokens {result['tokens'][0]} to {result['tokens'][-1]} in {result['model']} "
        f"({result['weights']}), {result['bytes'] / 1e6:.2f} MB -> {result['out']}"
    )
    keys = ("out", "k", "tokens", "ids", "prepend", "weights", "dtype", "rows", "tag", "bytes", "warnings")
    finish(options, {"format": "tokens", **{key: result[key] for key in keys}})


def export_gguf(options: argparse.Namespace) -> None:
    """Write a model as a GGUF file."""
    result = ctp.export_gguf(options.model, Path(options.out))
    for warning in result["warnings"]:
        note(warning)
    say(options)(f"{result['tag']} as GGUF, {result['bytes'] / 1e6:.2f} MB -> {result['out']}/model.gguf")
    finish(options, result)
