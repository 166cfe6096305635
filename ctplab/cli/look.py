"""``inspect`` and ``lens``: what a prompt looks like, and what arms think of a text."""

import argparse
from dataclasses import asdict
from typing import Any

from ctplab.cli.shared import add_command, attach, finish, load_model, models_and_prompt, say, seq_len


def inspect(options: argparse.Namespace) -> None:
    from ctplab.formats import prompt_file
    from ctplab.inspect.nearest import inspect_prompt, nearest_hard_prompt
    from ctplab.inspect.similarity import cosine_histogram
    from ctplab.measure.perplexity import perplexity
    from ctplab.progress import bar
    from ctplab.prompts.arms import Arm
    from ctplab.show import report
    from ctplab.text.corpora import corpus

    saved = prompt_file.load(options.prompt)
    model, tokenizer = load_model(options, options.model)
    attach(options, options.model, saved, model, tokenizer)
    E, initial = saved.rows()
    rows = inspect_prompt(
        model,
        tokenizer,
        E,
        initial,
        top=min(options.top, 10),
        metric=options.metric,
        centre=options.centre,
        drop_special=options.drop_special,
        drop_unused=options.drop_unused,
    )
    histogram = cosine_histogram(model, E, initial, top=options.top, bins=options.bins, seed=options.seed)
    tell = say(options)
    tell(report.nearest_table(rows, histogram, options.metric))
    tokens = [
        {
            "row": r.row,
            "nearest": [{"token": token, options.metric: value} for token, value in r.nearest],
            "norm": r.norm,
            "init": r.init,
            "init_rank": r.init_rank,
            "drift": r.drift,
        }
        for r in rows
    ]
    words = nearest_hard_prompt(model, tokenizer, E, metric=options.metric, drop_special=options.drop_special)
    result: dict[str, Any] = {"tokens": tokens, "histogram": histogram, "hard_prompt": tokenizer.decode(words.ids)}
    tell(f"as its nearest tokens: {result['hard_prompt']!r}")
    if options.corpus:
        text = corpus(options.corpus, tokenizer, seq_len(model, options.seq_len, E.k)).test
        result["ppl"] = {
            name: perplexity(Arm(name, model, prefix), text, limit=options.windows or None, progress=bar).ppl
            for name, prefix in (("soft", E), ("nearest", words))
        }
        tell(
            f"perplexity on {options.corpus}: {result['ppl']['soft']:.2f} with the learned rows, "
            f"{result['ppl']['nearest']:.2f} with their nearest tokens"
        )
    finish(options, result)


def lens(options: argparse.Namespace) -> None:
    from ctplab.measure.lens import hurt_and_helped
    from ctplab.measure.lens import lens as look
    from ctplab.prompts import prefix
    from ctplab.prompts.arms import arms
    from ctplab.prompts.wordings import wording
    from ctplab.show import tables

    full, small, soft, tokenizer = models_and_prompt(options)
    hard = prefix.hard(small, tokenizer, wording(options.hard_prompt)) if options.hard_prompt else None
    seen = look(arms(full, small, hard, soft), tokenizer, options.text.replace("\\n", "\n"), top=options.top)
    say(options)(tables.lens_table(seen))
    moved = {}
    if soft is not None:
        moved = hurt_and_helped(seen, options.most)
        for name, found in moved.items():
            words = ", ".join(f"{change.token!r} at {change.position} ({change.nats:+.2f})" for change in found)
            say(options)(f"{name} most, nats: {words or 'none'}")
    finish(options, asdict(seen) | {name: [asdict(c) for c in found] for name, found in moved.items()})


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, inspect, "nearest tokens, norms, drift and cosine histogram of a prompt")
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True)
    sub.add_argument("--top", type=int, default=100, help="nearest tokens a row in the histogram")
    sub.add_argument("--bins", type=int, default=40)
    sub.add_argument("--metric", choices=("cosine", "dot", "l2"), default="cosine")
    sub.add_argument("--centre", action="store_true", help="take the vocabulary's mean row off first")
    sub.add_argument("--drop-special", action="store_true", help="leave special tokens out")
    sub.add_argument("--drop-unused", action="store_true", help="leave rows without a token out")
    sub.add_argument("--corpus", metavar="CORPUS", help="measure the nearest-token hard prompt here")
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")

    sub = add_command(commands, lens, "surprisal of every token under each arm, and KL to the full model")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", metavar="DIR")
    sub.add_argument("--hard-prompt", metavar="TEXT")
    sub.add_argument("--top", type=int, default=10, help="alternatives a token")
    sub.add_argument("--most", type=int, default=5, help="how many of the most hurt and most helped tokens")
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")
    sub.add_argument("text")
