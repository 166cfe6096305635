"""``inspect``: what a prompt looks like."""

import argparse
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, attach, finish, load_model, loss_option, say, seq_len
from ctplab.progress import bar
from ctplab.prompts.arms import Parts, build
from ctplab.show import report


def inspect(options: argparse.Namespace) -> None:
    """Show the neighbours of the learned rows, and on --corpus what these would do as a hard prompt."""
    saved = ctp.load_prompt(options.prompt)
    model, tokenizer = load_model(options, options.model)
    attach(options, options.model, saved, model, tokenizer)
    E, initial = saved.rows()
    text = None
    if options.corpus:  # refused before anything is shown
        text = ctp.corpus(options.corpus, tokenizer, seq_len(model, options.seq_len, E.k), loss=options.loss).test
    dropped = {"drop_special": options.drop_special}
    rows = ctp.inspect_prompt(
        model, tokenizer, E, initial, top=min(options.top, 10), metric=options.metric, centre=options.centre,
        drop_unused=options.drop_unused, **dropped,
    )  # fmt: skip
    histogram = ctp.cosine_histogram(model, E, initial, top=options.top, bins=options.bins, seed=options.seed)
    words = ctp.nearest_hard_prompt(model, tokenizer, E, metric=options.metric, **dropped)
    result: dict[str, Any] = {
        "tokens": [
            {
                "row": row.row,
                "nearest": [{"token": token, options.metric: value} for token, value in row.nearest],
                "norm": row.norm,
                "init": row.init,
                "init_rank": row.init_rank,
                "drift": row.drift,
            }
            for row in rows
        ],
        "histogram": histogram,
        "hard_prompt": tokenizer.decode(words.ids),
    }
    tell = say(options)
    tell(report.nearest_table(rows, histogram, options.metric))
    tell(f"as its nearest tokens: {result['hard_prompt']!r}")
    if text is not None:
        arms = build("soft", Parts(compressed=model, soft=E)), ctp.Arm("nearest", model, words)
        result["ppl"] = {
            arm.name: ctp.perplexity(arm, text, limit=options.windows or None, progress=bar).ppl for arm in arms
        }
        tell(
            f"perplexity on {options.corpus}: {result['ppl']['soft']:.2f} with the learned rows, "
            f"{result['ppl']['nearest']:.2f} with their nearest tokens"
        )
    finish(options, result)


def register(commands: Any) -> None:
    """Add the command."""
    about = "nearest tokens, norms, drift and cosine histogram of a prompt"
    sub = add_command(commands, "inspect", inspect, about)
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True)
    sub.add_argument("--top", type=at_least(1), default=100, help="nearest tokens a row in the histogram")
    sub.add_argument("--bins", type=at_least(1), default=40)
    sub.add_argument("--metric", choices=("cosine", "dot", "l2"), default="cosine")
    sub.add_argument("--centre", action="store_true", help="take the vocabulary's mean row off first")
    sub.add_argument("--drop-special", action="store_true", help="leave special tokens out")
    sub.add_argument("--drop-unused", action="store_true", help="leave rows without a token out")
    sub.add_argument("--corpus", metavar="CORPUS", help="measure the nearest-token hard prompt here")
    loss_option(sub)
    sub.add_argument("--seq-len", type=at_least(0), default=0)
    sub.add_argument("--windows", type=at_least(0), default=0, help="score the first N windows only")
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")
