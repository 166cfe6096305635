"""``export model``, ``export prompt`` and ``import prompt``: to and from other programs."""

import argparse
from pathlib import Path
from typing import Any

from ctplab.cli import models, tokens
from ctplab.cli.shared import add_command, add_group, attach, finish, load_model, manifest_of, say


def export_prompt(options: argparse.Namespace) -> None:
    from ctplab.formats import prompt_file
    from ctplab.formats.exchange import export_prompt

    tokens.check_options(options)
    if options.to == "tokens":
        return tokens.export_tokens(options)
    saved = prompt_file.load(options.prompt)
    model, tokenizer = load_model(options, options.model)
    attach(options, options.model, saved, model, tokenizer)
    result = export_prompt(saved, Path(options.out), model, options.to)
    say(options)(f"{result['k']} prompt tokens as {result['format']} -> {result['out']}")
    finish(options, result)


def import_prompt(options: argparse.Namespace) -> None:
    from ctplab.formats.exchange import import_prompt

    model, tokenizer = (None, None) if options.model is None else load_model(options, options.model)
    base = None if options.model is None else manifest_of(options.model).get("base", options.model)
    info = import_prompt(
        Path(options.path), Path(options.out), model, tokenizer, base=base, source=getattr(options, "from")
    )
    say(options)(f"{info['k']} prompt tokens from {info['imported_from']}, made for {info['base']} -> {options.out}")
    keys = ("k", "width", "kind", "base", "tag", "imported_from", "claimed")
    finish(options, {"out": options.out, **{key: info.get(key) for key in keys}})


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    exports = add_group(commands, "export", "write a model or a prompt for other programs")
    models.register_export(exports)

    sub = add_command(exports, export_prompt, "write a prompt for other programs", "prompt")
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True, help="what it will run on; kv belongs to this checkpoint")
    sub.add_argument("--to", required=True, help="peft, kv (PEFT prefix tuning), embeds (vLLM's) or tokens")
    tokens.add_options(sub)
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")
    sub.add_argument("--out", required=True, metavar="DIR")

    imports = add_group(commands, "import", "take over a prompt from other programs")
    sub = add_command(imports, import_prompt, "from PEFT, the paper's best.pth, or our tokens export", "prompt")
    sub.add_argument("path")
    sub.add_argument("--model", help="what it was made for; a tokens export says so itself")
    sub.add_argument("--from", choices=("peft", "kv", "paper", "tokens"), help="checked; found out by itself otherwise")
    sub.add_argument("--out", required=True, metavar="DIR")
