"""``lens``: what the arms think of every token of a text."""

import argparse
from dataclasses import asdict
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least, words
from ctplab.cli.shared import add_command, compared_arms, finish, raw_options, say, start_option
from ctplab.show import tables
from ctplab.text.reading import written


def lens(options: argparse.Namespace) -> None:
    """Show the surprisal of every token, and with a prompt which tokens moved most."""
    arms, tokenizer, dtype = compared_arms(options)
    text = options.text.replace("\\n", "\n")
    seen = ctp.lens(arms, tokenizer, text, top=options.top, start=options.start, raw=options.raw)
    if options.show_text:
        say(options)(written(tokenizer, text, options.raw))
    say(options)(tables.lens_table(seen))
    moved = {}
    if options.prompt is not None:
        moved = ctp.hurt_and_helped(seen, options.most)
        for name, found in moved.items():
            words = ", ".join(f"{change.token!r} at {change.position} ({change.nats:+.2f})" for change in found)
            say(options)(f"{name} most, nats: {words or 'none'}")
    changes = {name: [asdict(change) for change in found] for name, found in moved.items()}
    finish(options, asdict(seen) | changes | {"dtype": dtype})


def register(commands: Any) -> None:
    """Add the command."""
    about = "surprisal of every token under each arm, and KL to the full model"
    sub = add_command(commands, "lens", lens, about)
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", metavar="DIR")
    sub.add_argument("--hard-prompt", type=words, metavar="TEXT")
    sub.add_argument("--top", type=at_least(0), default=10, help="alternatives a token")
    sub.add_argument("--most", type=at_least(0), default=5, help="how many of the most hurt and most helped tokens")
    raw_options(sub)
    start_option(sub)
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")
    sub.add_argument("text", type=words)
