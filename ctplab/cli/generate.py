"""``generate``: one arm continues a text."""

import argparse
from dataclasses import asdict
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least, real, words
from ctplab.cli.parsing import Parser
from ctplab.cli.shared import (
    add_command,
    arm_options,
    chosen_arm,
    finish,
    load_model,
    raw_options,
    say,
    start_option,
)
from ctplab.text.reading import start_of, written


def generate(options: argparse.Namespace) -> None:
    """Print the continuation as it comes, or with --json when it is complete."""
    model, tokenizer = load_model(options, options.model)
    arm = chosen_arm(options, model, tokenizer)
    text = options.text.replace("\\n", "\n")
    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "sampler": sampler(options),
        "raw": options.raw,
        "start": options.start,
    }
    start = start_of(tokenizer, options.start, options.raw)
    sent = written(tokenizer, text, options.raw)
    if options.show_text:
        say(options)(f"{sent}   (start: {start})")
    if options.json:
        answer = ctp.generate(arm, tokenizer, [text], **settings)[0]
        finish(options, {"arm": arm.name, "sent": sent, "start": start, **asdict(answer)})
        return
    for piece in ctp.stream(arm, tokenizer, text, **settings):
        print(piece, end="", flush=True)
    print()


def sampler(options: argparse.Namespace) -> ctp.Sampler:
    """How the next token is chosen, as :func:`sampler_options` say."""
    return ctp.Sampler(options.temperature, options.top_p, options.repetition_penalty, options.seed)


def sampler_options(sub: Parser) -> None:
    """Add the options of sampling; ``compare`` has them too."""
    sub.add_argument("--temperature", type=real, default=0.0, help="0 is greedy")
    sub.add_argument("--top-p", type=real, default=1.0)
    sub.add_argument("--repetition-penalty", type=real, default=1.0)


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "generate", generate, "continue a text with one arm, streaming")
    sub.add_argument("model")
    sub.add_argument("text", type=words)
    arm_options(sub)
    sub.add_argument("--max-new-tokens", type=at_least(1), default=48)
    sampler_options(sub)
    raw_options(sub)
    start_option(sub)
