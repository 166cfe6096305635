"""``import model`` and ``import prompt``: from other programs."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import add_command, add_group, finish, load_model, manifest_of, note, say
from ctplab.formats.checkpoint import describe


def import_model(options: argparse.Namespace) -> None:
    """Make a plain folder of a GGUF file."""
    ctp.import_model(options.file, options.out)
    about = describe(options.out)
    say(options)(f"{about['model_type']}, {about['parameters'] / 1e6:.2f} M weights -> {options.out}")
    if "note" in about:
        note(about["note"])
    finish(options, {"out": options.out, **about})


def import_prompt(options: argparse.Namespace) -> None:
    """Read a prompt of PEFT's, the paper's or a tokens export and write it as a folder of ours."""
    model, tokenizer = (None, None) if options.model is None else load_model(options, options.model)
    base = None if options.model is None else manifest_of(options.model).get("base", options.model)
    info = ctp.import_prompt(
        Path(options.path), Path(options.out), model, tokenizer, base=base, source=getattr(options, "from")
    )
    say(options)(f"{info['k']} prompt tokens from {info['imported_from']}, made for {info['base']} -> {options.out}")
    keys = ("k", "width", "kind", "base", "tag", "imported_from", "claimed")
    finish(options, {"out": options.out, **{key: info.get(key) for key in keys}})


def register(commands: Any) -> None:
    """Add the two commands."""
    imports = add_group(commands, "import", "take over a model or a prompt from other programs")

    sub = add_command(imports, "model", import_model, "a GGUF file as a plain folder")
    sub.add_argument("file", metavar="FILE.gguf")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = add_command(imports, "prompt", import_prompt, "from PEFT, the paper's best.pth, or our tokens export")
    sub.add_argument("path")
    sub.add_argument("--model", help="what it was made for; a tokens export says so itself")
    sub.add_argument("--from", choices=("peft", "kv", "paper", "tokens"), help="checked; found out by itself otherwise")
    sub.add_argument("--out", required=True, metavar="DIR")
