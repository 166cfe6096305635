"""``score`` and ``inspect``: what an arm is worth, and what a prompt looks like."""

import argparse
from typing import Any

from ctplab.cli.shared import add_command, arm_options, chosen_arm, finish, load_model, say, seq_len
from ctplab.errors import InputError


def score(options: argparse.Namespace) -> None:
    from ctplab.atlas.questions import questions
    from ctplab.corpora import corpus
    from ctplab.measure.perplexity import perplexity
    from ctplab.measure.questions import answers, marks
    from ctplab.measure.stats import wilson
    from ctplab.progress import bar

    model, tokenizer = load_model(options, options.model)
    arm = chosen_arm(options, model, tokenizer)
    length = seq_len(model, options.seq_len, arm.prefix.k)
    result: dict[str, Any] = {"arm": arm.name, "seq_len": length, "corpora": {}, "tasks": {}}
    tell = say(options)
    for name in options.corpus.split(","):
        found = perplexity(arm, corpus(name, tokenizer, length).test, limit=options.windows or None, progress=bar)
        row = {"nll": found.nll, "n_tokens": found.n_tokens, "ppl": found.ppl}
        if options.as_published:
            row["ppl_as_published"] = found.ppl_as_published(arm.prefix.k, length)
        result["corpora"][name] = row
        tell(f"{arm.name} on {name}: {found}")
    for task in filter(None, options.tasks.split(",")):
        if task != "atlas":
            raise InputError(f"unknown task {task!r}; known here is atlas, the embedded questions")
        asked = list(questions())
        interval = wilson(sum(marks(answers(arm, tokenizer, asked, progress=bar), asked)), len(asked))
        stderr = (interval.value * (1 - interval.value) / len(asked)) ** 0.5
        result["tasks"][task] = {"exact_match": {"value": interval.value, "stderr": stderr, "n": len(asked)}}
        tell(f"{arm.name} on {task}: exact match {interval}")
    finish(options, result)


def inspect(options: argparse.Namespace) -> None:
    from ctplab import report
    from ctplab.inspect.nearest import inspect_prompt
    from ctplab.inspect.similarity import cosine_histogram
    from ctplab.prompts import files

    saved = files.load(options.prompt)
    model, tokenizer = load_model(options, options.model)
    files.attach(saved, model, tokenizer, force=options.force)
    rows = inspect_prompt(model, tokenizer, saved.prefix, saved.initial, top=min(options.top, 10))
    histogram = cosine_histogram(model, saved.prefix, saved.initial, top=options.top)
    say(options)(report.nearest_table(rows, histogram))
    tokens = [
        {
            "row": r.row,
            "nearest": [{"token": token, "cosine": cosine} for token, cosine in r.nearest],
            "norm": r.norm,
            "init": r.init,
            "init_rank": r.init_rank,
            "drift": r.drift,
        }
        for r in rows
    ]
    finish(options, {"tokens": tokens, "histogram": histogram})


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, score, "perplexity (and the embedded questions) of one arm")
    sub.add_argument("model")
    arm_options(sub)
    sub.add_argument("--corpus", default="atlas-web", help="names, separated by commas")
    sub.add_argument("--tasks", default="", help="atlas: the embedded questions")
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--as-published", action="store_true", help="also the paper's understated perplexity")

    sub = add_command(commands, inspect, "nearest tokens, norms, drift and cosine histogram of a prompt")
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True)
    sub.add_argument("--top", type=int, default=100)
    sub.add_argument("--force", action="store_true")
