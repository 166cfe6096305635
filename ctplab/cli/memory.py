"""``memory``: what learning a prompt, or tuning a compressed model, needs, on paper."""

import argparse
from dataclasses import asdict, fields, replace
from typing import Any

from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, finish, say
from ctplab.cli.tune import kinds_in
from ctplab.errors import InputError
from ctplab.formats.tuned import KINDS, SOFT
from ctplab.learning.memory import SHAPES, Settings, learning, shape_of
from ctplab.learning.memory_tuned import tuning
from ctplab.models.loading import load_config
from ctplab.show.tables import memory_table


def memory(options: argparse.Namespace) -> None:
    """Count what learning needs; nothing is loaded."""
    what = [] if options.what is None else kinds_in(options.what)
    if what == [SOFT]:
        raise InputError("a prompt alone is what is told without --what")
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    if what:  # 'ctplab tune' recomputes nothing
        settings = replace(settings, tokens=settings.tokens if SOFT in what else 0, recompute=False)
    kinds = [kind for kind in what if kind != SOFT]
    found = {}
    for name in options.model or SHAPES:
        shape = SHAPES[name] if name in SHAPES else shape_of(load_config(name))
        found[name] = tuning(shape, settings, kinds, options.rank) if kinds else learning(shape, settings)
    say(options)(memory_table(found))
    rows = {name: {**asdict(needed), "total": needed.total} for name, needed in found.items()}
    finish(options, {"settings": asdict(settings), "what": what, "bytes": rows})


def register(commands: Any) -> None:
    """Add the command."""
    about = "what learning a prompt needs in memory, on paper; with --what: what 'ctplab tune' needs"
    sub = add_command(commands, "memory", memory, about, dtype="bfloat16")
    sub.add_argument("model", nargs="*", help="1b, 7b, 13b, 70b (LLaMA's shapes; all, if none is named), or a model")
    sub.add_argument("--tokens", type=at_least(1), default=100, metavar="K")
    sub.add_argument("--seq-len", type=at_least(1), default=1024)
    sub.add_argument(
        "--batch", type=at_least(1), default=4, help="windows at a time: batch over accumulate and processes"
    )
    sub.add_argument("--bits", type=at_least(1), help="packed weights of so many bits (default: dense)")
    sub.add_argument("--group-size", type=at_least(1), default=128)
    sub.add_argument("--card", action="store_true", help="on a GPU with Triton: fused layers, larger chunks of logits")
    sub.add_argument("--no-recompute", dest="recompute", action="store_false")
    sub.add_argument(
        "--what", metavar="KINDS",
        help=f"of 'ctplab tune': {', '.join((*KINDS, SOFT))}, separated by commas; weights are then dense in memory, "
        "nothing is recomputed, and --bits are those of the model's codes (default: it is pruned only)",
    )  # fmt: skip
    sub.add_argument("--rank", type=at_least(1), default=8, help="of low-rank updates (8)")
    sub.set_defaults(dtype="bfloat16")
