"""``compare``: what the four arms answer."""

import argparse
from dataclasses import asdict
from typing import Any

import ctplab as ctp
from ctplab.cli.generate import sampler, sampler_options
from ctplab.cli.numbers import at_least, words
from ctplab.cli.shared import add_command, compared_arms, finish, raw_options, say
from ctplab.decoding.inputs import written
from ctplab.text.chat import has_template


def compare(options: argparse.Namespace) -> None:
    """Ask every arm every text."""
    arms, tokenizer, dtype = compared_arms(options)
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "raw": options.raw}
    chats = has_template(tokenizer) and not options.raw
    settings["stop"] = options.stop if options.stop or chats else "\n"
    settings["sampler"] = sampler(options)
    result = []
    for text in (t.replace("\\n", "\n") for t in options.text):
        row: dict[str, Any] = {
            "text": text,
            "sent": written(tokenizer, text, options.raw),
            "answers": {},
            "dtype": dtype,
        }
        say(options)(row["sent"] if options.show_text else text)
        for arm in arms:
            answer = ctp.generate(arm, tokenizer, [text], **settings)[0]
            row["answers"][arm.name] = asdict(answer)
            say(options)(f"  {arm.name:>10} | {answer.text.strip()}")
        result.append(row)
    finish(options, result)


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "compare", compare, "the four arms' answers side by side")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", metavar="DIR")
    sub.add_argument(
        "--hard-prompt",
        type=words,
        default="paper",
        metavar="TEXT",
        help="words, or a preset: paper, pruned, quantized",
    )
    sub.add_argument("--force", action="store_true")
    sub.add_argument("--max-new-tokens", type=at_least(1), default=32)
    sampler_options(sub)
    sub.add_argument(
        "--stop", type=words, help="text that ends an answer (default: a line break, or the end of a turn)"
    )
    raw_options(sub)
    sub.add_argument("text", type=words, nargs="+")
