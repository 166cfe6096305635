"""``latency``: what a prompt costs in time."""

import argparse
from dataclasses import asdict
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, finish, load_model, say
from ctplab.errors import InputError
from ctplab.progress import bar
from ctplab.prompts.arms import check_dtypes
from ctplab.prompts.prefix import none
from ctplab.show import tables


def latency(options: argparse.Namespace) -> None:
    """Time the model at every k, with dense weights and with packed ones if --weights says so."""
    if not set(options.weights.split(",")) <= {"dense", "packed"}:
        raise InputError(f"weights must be dense, or dense,packed, not {options.weights!r}")
    kinds = ("dense", "packed") if "packed" in options.weights else ("dense",)
    models = {kind: load_model(options, options.model, packed=kind == "packed")[0] for kind in kinds}
    points = ctp.latency(
        [ctp.Arm(kind, model, none(model)) for kind, model in models.items()],
        tokens=numbers(options.tokens),
        batch=options.batch,
        length=options.length,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        seed=options.seed,
        progress=bar,
    )
    dtype = check_dtypes(list(models.values()))
    say(options)(tables.latency_table(points))
    finish(options, [asdict(point) | {"dtype": dtype} for point in points])


def numbers(text: str, what: str = "tokens") -> list[int]:
    """``0,25,50`` as whole numbers; ``what`` they are, for the message."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{what} must be whole numbers separated by commas, not {text!r}") from None


def register(commands: Any) -> None:
    """Add the command."""
    about = "time to the first token and tokens a second against k"
    sub = add_command(commands, "latency", latency, about)
    sub.add_argument("model")
    sub.add_argument("--tokens", default="0,25,50,75,100", help="prompt lengths, separated by commas")
    sub.add_argument("--weights", default="dense", help="dense, or dense,packed for a ctplab folder")
    sub.add_argument("--batch", type=at_least(1), default=1)
    sub.add_argument("--length", type=at_least(1), default=128, help="text tokens before the first new one")
    sub.add_argument("--new-tokens", type=at_least(1), default=16)
    sub.add_argument("--repeats", type=at_least(1), default=5)
