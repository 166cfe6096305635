"""``score``: what an arm is worth."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import (
    add_command,
    arm_options,
    chosen_arm,
    corpora_option,
    finish,
    load_full,
    load_model,
    loss_option,
    say,
    seq_len,
    start_option,
    window_options,
)
from ctplab.disk import compute_always
from ctplab.measure.stats import ratio_of_sums
from ctplab.measure.tasks.evaluate import task_flips
from ctplab.progress import bar
from ctplab.prompts.arms import check_dtypes
from ctplab.prompts.prefix import none
from ctplab.show import tables
from ctplab.text.reading import start_of


def score(options: argparse.Namespace) -> None:
    """Score the chosen arm on every corpus and every task."""
    model, tokenizer = load_model(options, options.model, options.packed)
    arm = chosen_arm(options, model, tokenizer)
    length, full = seq_len(model, options.seq_len, arm.prefix.k), None
    result: dict[str, Any] = {"arm": arm.name, "seq_len": length, "dtype": check_dtypes([model])}
    result |= {"corpora": {}, "tasks": {}}
    if options.against is not None:
        full = ctp.Arm("full", load_full(options, options.against, model, tokenizer), none(model))
        result["against"] = options.against
    tell = say(options)
    keep = ctp.kept_in(Path(options.out)) if options.out else compute_always
    for name in options.corpus:
        text = ctp.corpus(name, tokenizer, length, loss=options.loss).test
        scores = ctp.window_scores(
            arm, text, batch=options.batch, limit=options.windows or None, keep=keep, name=f"{arm.name}--{name}",
            progress=bar,
        )  # fmt: skip
        found = scores.score
        row = {"nll": found.nll, "n_tokens": found.n_tokens, "ppl": found.ppl}
        told = f"{arm.name} on {name}: {found}"
        if len(scores.nll) > 1:  # windows; an interval over one says nothing
            spread = ratio_of_sums(scores.nll.double(), scores.n_tokens)
            for end, mean in (("low", spread.low), ("high", spread.high)):
                row[end] = ctp.Score(mean * found.n_tokens, found.n_tokens).ppl
            told += f"; 95% over its windows: {row['low']:.2f} to {row['high']:.2f}"
        if options.as_published:
            row["ppl_as_published"] = found.ppl_as_published(arm.prefix.k, length)
            told += f"; as the paper's code would print it {row['ppl_as_published']:.2f}"
        result["corpora"][name] = row
        tell(told)
        if full is not None:
            close = ctp.fidelity(
                arm, full, text, batch=options.batch, limit=options.windows or None, keep=keep,
                name=f"{arm.name}--{name}--against", progress=bar,
            )  # fmt: skip
            row["fidelity"] = close.summary()
            tell(tables.fidelity_table({arm.name: close}) + "\n" + tables.spans_table(close))
    names = list(filter(None, options.tasks.split(",")))
    asking: dict[str, Any] = {"limit": options.limit or None, "batch": options.batch, "seed": options.seed}
    asking |= {"start": options.start, "raw": options.raw}
    asked = ctp.ask_tasks(arm, tokenizer, names, **asking, progress=bar)
    if asked:
        result["start"] = start_of(tokenizer, options.start, raw=options.raw or set(names) != {"atlas"})
    for name, found in asked.items():
        result["tasks"][name] = {metric: asdict(value) for metric, value in found.metrics.items()}
        result["marks"] = result.get("marks", {}) | {name: found.marks}
    for name, metrics in result["tasks"].items():
        for metric, value in metrics.items():
            spread = "" if value["stderr"] is None else f" ± {value['stderr']:.4f}"
            tell(f"{arm.name} on {name}: {metric} {value['value']:.4f}{spread} ({value['n']} questions)")
    if full is not None and names:
        before = ctp.ask_tasks(full, tokenizer, names, **asking, progress=bar)
        result["flips"] = {name: asdict(task_flips(before[name], found)) for name, found in asked.items()}
        for name, found in result["flips"].items():
            tell(
                f"{arm.name} on {name}: of {found['n']} questions {found['lost']} that the full model has right are "
                f"wrong, {found['won']} that it has wrong are right (McNemar's p {tables.p_text(found['p'])})"
            )
    finish(options, result)


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "score", score, "perplexity, tasks and fidelity of one arm", shared=True)
    sub.add_argument("model")
    arm_options(sub)
    corpora_option(sub, "--corpus", ["atlas-web"], "names, separated by commas; '' for none")
    loss_option(sub)
    sub.add_argument(
        "--tasks", default="", help="atlas (the embedded questions), any of lm-eval's by name, or a YAML file"
    )
    start_option(sub)
    sub.add_argument("--raw", action="store_true", help="tasks: no chat template where answers are generated")
    sub.add_argument("--limit", type=at_least(0), default=0, help="the first N questions of each task only")
    sub.add_argument(
        "--against", metavar="MODEL", help="the full model: also KL to it, the same first choices, and flips on tasks"
    )
    sub.add_argument("--as-published", action="store_true", help="also the paper's understated perplexity")
    sub.add_argument("--packed", action="store_true", help="run from packed weights: less memory, slower")
    sub.add_argument("--out", metavar="DIR", help="keep every corpus' sums here; the same command goes on from them")
    window_options(sub)
