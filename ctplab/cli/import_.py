"""``import prompt``: from other programs."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import add_command, add_group, finish, load_model, manifest_of, say


def import_prompt(options: argparse.Namespace) -> None:
    """Read a prompt of PEFT's or the paper's and write it as a folder of ours."""
    model, tokenizer = load_model(options, options.model)
    base = manifest_of(options.model).get("base", options.model)
    info = ctp.import_prompt(
        Path(options.path), Path(options.out), model, tokenizer, base=base, source=getattr(options, "from")
    )
    say(options)(f"{info['k']} prompt tokens from {info['imported_from']}, made for {info['base']} -> {options.out}")
    keys = ("k", "width", "kind", "base", "tag", "imported_from", "claimed")
    finish(options, {"out": options.out, **{key: info.get(key) for key in keys}})


def register(commands: Any) -> None:
    """Add the command."""
    imports = add_group(commands, "import", "take over a prompt from other programs")
    sub = add_command(imports, "prompt", import_prompt, "from PEFT, or the paper's best.pth")
    sub.add_argument("path")
    sub.add_argument("--model", required=True, help="what it was made for")
    sub.add_argument("--from", choices=("peft", "kv", "paper"), help="checked; found out by itself otherwise")
    sub.add_argument("--out", required=True, metavar="DIR")
