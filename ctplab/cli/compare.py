"""``compare``: what the four arms answer."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.generate import sampler, sampler_options
from ctplab.cli.many import DEFAULT_TOKENS, compare_many
from ctplab.cli.numbers import at_least, words
from ctplab.cli.shared import add_command, compared_arms, finish, raw_options, say, start_option
from ctplab.decoding.inputs import check_all
from ctplab.errors import InputError
from ctplab.text.reading import chats, start_of, written


def compare(options: argparse.Namespace) -> None:
    """Ask every arm every text, or every question of a set."""
    if (options.questions is None) == (not options.text):
        raise InputError("give texts, or --questions with a file, atlas or task:NAME")
    if options.fidelity and options.questions is None:
        raise InputError("--fidelity needs --questions: one text says little; 'ctplab score --against' takes a corpus")
    many = ("limit", "out", "write", "fidelity", "questions")
    one = ("temperature", "top_p", "repetition_penalty", "stop", "show_text")
    unused, beside = (many, "without --questions") if options.questions is None else (one, "beside --questions")
    options.parser.check_unused(options, options.parser.flags.keys() - unused, beside)
    if options.questions is not None:
        options.max_new_tokens = options.max_new_tokens or DEFAULT_TOKENS
        return compare_many(options)
    options.max_new_tokens = 32 if options.max_new_tokens is None else options.max_new_tokens
    arms, tokenizer, dtype = compared_arms(options)
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "raw": options.raw, "start": options.start}
    settings["stop"] = options.stop if options.stop or chats(tokenizer, options.raw) else "\n"
    start = start_of(tokenizer, options.start, options.raw)
    settings["sampler"] = sampler(options)
    texts, result = [text.replace("\\n", "\n") for text in options.text], []
    check_all(arms, tokenizer, texts, options.max_new_tokens, raw=options.raw, start=options.start)
    for text in texts:
        row: dict[str, Any] = {
            "text": text,
            "sent": written(tokenizer, text, options.raw),
            "start": start,
            "answers": {},
            "dtype": dtype,
        }
        say(options)(f"{row['sent'] if options.show_text else text}   (start: {start})")
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
    sub.add_argument("--max-new-tokens", type=at_least(1), help="default: 32, and 24 for --questions")
    sub.add_argument(
        "--questions", metavar="FILE",
        help="many questions instead of texts: .csv, .jsonl, .json or a line each (question, answer); atlas: the "
        "embedded world's; task:NAME: an lm-eval task's",
    )  # fmt: skip
    sub.add_argument(
        "--fidelity", action="store_true",
        help="--questions: also KL to the full model and the same first choices, on the full model's answers",
    )  # fmt: skip
    sub.add_argument("--limit", type=at_least(1), help="the first questions only")
    sub.add_argument("--out", type=Path, metavar="DIR", help="keep the answers; the same command goes on from there")
    sub.add_argument(
        "--write", type=Path, action="append", default=[], metavar="FILE",
        help="the answers as .jsonl, .csv, or .json for LLM Comparator; repeatable",
    )  # fmt: skip
    sampler_options(sub)
    sub.add_argument(
        "--stop", type=words, help="text that ends an answer (default: a line break, or the end of a turn)"
    )
    raw_options(sub)
    start_option(sub)
    sub.add_argument("text", type=words, nargs="*")
