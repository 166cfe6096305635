"""``generate`` and ``compare``: what arms answer."""

import argparse
from dataclasses import asdict
from typing import Any

from ctplab.cli.shared import add_command, arm_options, chosen_arm, finish, load_model, models_and_prompt, say


def sampler(options: argparse.Namespace) -> Any:
    """How the next token is chosen, from :func:`sampler_options`."""
    from ctplab.decoding.sampler import Sampler

    return Sampler(options.temperature, options.top_p, options.repetition_penalty, options.seed)


def sampler_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--repetition-penalty", type=float, default=1.0)


def generate(options: argparse.Namespace) -> None:
    from ctplab.decoding.generate import generate
    from ctplab.decoding.steps import stream

    model, tokenizer = load_model(options, options.model)
    arm = chosen_arm(options, model, tokenizer)
    text = options.text.replace("\\n", "\n")
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "sampler": sampler(options)}
    if options.json:
        answer = generate(arm, tokenizer, [text], **settings)[0]
        finish(options, {"arm": arm.name, **asdict(answer)})
        return
    for piece in stream(arm, tokenizer, text, **settings):
        print(piece, end="", flush=True)
    print()


def compare(options: argparse.Namespace) -> None:
    from ctplab.decoding.generate import generate
    from ctplab.prompts import prefix
    from ctplab.prompts.arms import arms
    from ctplab.prompts.wordings import wording

    full, small, soft, tokenizer = models_and_prompt(options)
    hard = prefix.hard(small, tokenizer, wording(options.hard_prompt))
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "stop": options.stop}
    settings["sampler"] = sampler(options)
    result = []
    for text in (t.replace("\\n", "\n") for t in options.text):
        row: dict[str, Any] = {"text": text, "answers": {}}
        say(options)(text)
        for arm in arms(full, small, hard, soft):
            answer = generate(arm, tokenizer, [text], **settings)[0]
            row["answers"][arm.name] = asdict(answer)
            say(options)(f"  {arm.name:>10} | {answer.text.strip()}")
        result.append(row)
    finish(options, result)


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, generate, "continue a text with one arm, streaming")
    sub.add_argument("model")
    sub.add_argument("text")
    arm_options(sub)
    sub.add_argument("--max-new-tokens", type=int, default=48)
    sampler_options(sub)

    sub = add_command(commands, compare, "the four arms' answers side by side")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", metavar="DIR")
    sub.add_argument(
        "--hard-prompt", default="paper", metavar="TEXT", help="words, or a preset: paper, pruned, quantized"
    )
    sub.add_argument("--force", action="store_true")
    sub.add_argument("--max-new-tokens", type=int, default=32)
    sampler_options(sub)
    sub.add_argument("--stop", default="\n", help="text that ends an answer (default: a line break)")
    sub.add_argument("text", nargs="+")
