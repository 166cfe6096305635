"""``export model`` and ``export prompt``: for other programs."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli import tokens
from ctplab.cli.shared import add_command, add_group, attach, finish, load_model, say


def export_model(options: argparse.Namespace) -> None:
    """Write a compressed model as GPTQ or as a plain folder, or any model as GGUF."""
    if options.to == "gguf":
        return tokens.export_gguf(options)
    result = ctp.export(Path(options.model), Path(options.out), options.to)
    say(options)(f"{result['tag']} as {result['format']}, {result['bytes'] / 1e6:.2f} MB -> {result['out']}")
    finish(options, result)


def export_prompt(options: argparse.Namespace) -> None:
    """Write a prompt in a form that PEFT or vLLM reads, or with its model in one that all servers read."""
    tokens.check_options(options)
    if options.to == "tokens":
        return tokens.export_tokens(options)
    saved = ctp.load_prompt(options.prompt)
    model, tokenizer = load_model(options, options.model)
    attach(options, options.model, saved, model, tokenizer)
    result = ctp.export_prompt(saved, Path(options.out), model, options.to)
    say(options)(f"{result['k']} prompt tokens as {result['format']} -> {result['out']}")
    finish(options, result)


def register(commands: Any) -> None:
    """Add the two commands."""
    exports = add_group(commands, "export", "write a model or a prompt for other programs")

    sub = add_command(exports, "model", export_model, "write a model for other programs")
    sub.add_argument("model")
    sub.add_argument("--to", required=True, help="gptq, gptq_v2, dense (a plain half-precision folder) or gguf")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = add_command(exports, "prompt", export_prompt, "write a prompt for other programs")
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True, help="what it will run on; kv belongs to this checkpoint")
    sub.add_argument("--to", required=True, help="peft, kv (PEFT prefix tuning), embeds (vLLM's) or tokens")
    tokens.add_options(sub)
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")
    sub.add_argument("--out", required=True, metavar="DIR")
