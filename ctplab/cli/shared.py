"""What the subcommands share: options, output, and which arm a command line asks for."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctplab import parallel
from ctplab.errors import InputError


class Parser(argparse.ArgumentParser):
    """Bad options are bad input like any other: one line."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see '{self.prog} --help')")


def say(options: argparse.Namespace) -> Callable[[str], None]:
    """Text for people goes to standard output, or nowhere with --json: only JSON may stand there then.

    Of several processes the main one speaks; so too for ``note`` and ``finish``.
    """
    return (lambda text: None) if options.json or not parallel.is_main() else print


def note(text: str) -> None:
    """What the user should know beside the result: a line on standard error."""
    if parallel.is_main():
        print(f"ctplab: {text}", file=sys.stderr)


def finish(options: argparse.Namespace, result: Any) -> None:
    if options.shared:
        result = {**result, "processes": parallel.size()}
    if options.json and parallel.is_main():
        print(json.dumps(result))


def load_model(options: argparse.Namespace, name: str, packed: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) on the chosen device."""
    from ctplab.formats.loading import load

    return load(name, device=options.device, dtype=options.dtype, packed=packed)


def seq_len(model: Any, wanted: int, k: int = 0) -> int:
    from ctplab.models.anatomy import context_length

    limit = context_length(model)
    return wanted or min(1024, (limit or 1024 + k) - k)


def add_group(commands: Any, name: str, about: str) -> Any:
    """A subcommand that has subcommands of its own."""
    group = commands.add_parser(name, help=about, description=about)
    return group.add_subparsers(required=True, metavar="WHAT")


def numbers(text: str, what: str) -> list[int]:
    """``0,25,50`` as whole numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{what} must be whole numbers separated by commas, not {text!r}") from None


def add_command(
    commands: Any, run: Callable, about: str, name: str | None = None, *, shared: bool = False
) -> argparse.ArgumentParser:
    """A subcommand named after the function ``run``, with the options that all have.

    ``shared``: several processes (``accelerate launch``) share its work.
    """
    sub = commands.add_parser(name or run.__name__, help=about, description=about)
    sub.set_defaults(run=run, shared=shared)
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", help="cpu, cuda, cuda:1, auto: all GPUs (default: a GPU if there is one)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    return sub


def arm_options(sub: argparse.ArgumentParser) -> None:
    """Options that choose an arm; read by :func:`chosen_arm`."""
    sub.add_argument("--prompt", metavar="DIR", help="a learned prompt")
    sub.add_argument("--hard-prompt", metavar="TEXT", help="words, or a preset: paper, pruned, quantized")
    sub.add_argument("--control", choices=("bos", "random"))
    sub.add_argument("--tokens", type=int, default=100, help="rows of the random control")
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")


def window_options(sub: argparse.ArgumentParser, default_length: int = 0) -> None:
    """Which windows are scored, and how many at a time."""
    text = "tokens a window" + ("" if default_length else " (default: 1024, or what fits behind the prompt)")
    sub.add_argument("--seq-len", type=int, default=default_length, help=text)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--batch", type=int, default=16, help="windows a forward pass")


def manifest_of(model: str) -> dict[str, Any]:
    from ctplab.formats import checkpoint
    from ctplab.models.loading import resolve

    folder = Path(resolve(model))
    return checkpoint.read_manifest(folder) if (folder / checkpoint.MANIFEST).exists() else {}


def attach(options: argparse.Namespace, name: str, saved: Any, model: Any, tokenizer: Any) -> None:
    """Check that a prompt fits the model called ``name``, and tell what the user should know."""
    from ctplab.formats import prompt_file

    for found in prompt_file.attach(
        saved, model, tokenizer, tag=manifest_of(name).get("tag", "full"), force=options.force
    ):
        note(found)


def models_and_prompt(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """(full model, compressed model, learned prefix or None, tokenizer) of --full, --compressed and --prompt."""
    from ctplab.formats import prompt_file

    full, tokenizer = load_model(options, options.full)
    small, _ = load_model(options, options.compressed)
    if options.prompt is None:
        return full, small, None, tokenizer
    saved = prompt_file.load(options.prompt)
    attach(options, options.compressed, saved, small, tokenizer)
    return full, small, saved.prefix, tokenizer


def chosen_arm(options: argparse.Namespace, model: Any, tokenizer: Any):
    """The arm that --prompt, --hard-prompt or --control asks for."""
    from ctplab.formats import prompt_file
    from ctplab.prompts import prefix
    from ctplab.prompts.arms import Arm
    from ctplab.prompts.wordings import wording

    if sum(x is not None for x in (options.prompt, options.hard_prompt, options.control)) > 1:
        raise InputError("give one of --prompt, --hard-prompt and --control")
    if options.hard_prompt is not None:
        return Arm("hard", model, prefix.hard(model, tokenizer, wording(options.hard_prompt)))
    if options.control == "bos":
        return Arm("bos", model, prefix.bos(model, tokenizer))
    if options.control == "random":
        return Arm("random", model, prefix.random_rows(model, options.tokens, options.seed))
    if options.prompt is not None:
        saved = prompt_file.load(options.prompt)
        attach(options, options.model, saved, model, tokenizer)
        return Arm("soft", model, saved.prefix)
    return Arm("full" if not manifest_of(options.model) else "compressed", model, prefix.none(model))
