"""``score`` and ``latency``: what an arm is worth, and what it costs."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctplab.cli.shared import (
    add_command,
    arm_options,
    chosen_arm,
    finish,
    load_model,
    manifest_of,
    numbers,
    say,
    seq_len,
    window_options,
)
from ctplab.errors import InputError


def score(options: argparse.Namespace) -> None:
    from ctplab.disk import compute_always, kept_in
    from ctplab.measure.perplexity import window_scores
    from ctplab.measure.tasks.evaluate import evaluate
    from ctplab.progress import bar
    from ctplab.text.corpora import corpus

    model, tokenizer = load_model(options, options.model, options.packed)
    arm = chosen_arm(options, model, tokenizer)
    length = seq_len(model, options.seq_len, arm.prefix.k)
    result: dict[str, Any] = {"arm": arm.name, "seq_len": length, "corpora": {}, "tasks": {}}
    tell = say(options)
    keep = kept_in(Path(options.out)) if options.out else compute_always
    for name in filter(None, options.corpus.split(",")):
        text = corpus(name, tokenizer, length).test
        limit = options.windows or None
        scores = window_scores(
            arm, text, batch=options.batch, limit=limit, keep=keep, name=f"{arm.name}--{name}", progress=bar
        )
        found = scores.score
        row = {"nll": found.nll, "n_tokens": found.n_tokens, "ppl": found.ppl}
        told = f"{arm.name} on {name}: {found}"
        if options.as_published:
            row["ppl_as_published"] = found.ppl_as_published(arm.prefix.k, length)
            told += f"; as the paper's code would print it {row['ppl_as_published']:.2f}"
        result["corpora"][name] = row
        tell(told)
    names = list(filter(None, options.tasks.split(",")))
    asked = evaluate(
        arm, tokenizer, names, limit=options.limit or None, batch=options.batch, seed=options.seed, progress=bar
    )
    for name, found in asked.items():
        result["tasks"][name] = {metric: asdict(value) for metric, value in found.metrics.items()}
        result["marks"] = result.get("marks", {}) | {name: found.marks}
    for name, metrics in result["tasks"].items():
        for metric, value in metrics.items():
            spread = "" if value["stderr"] is None else f" ± {value['stderr']:.4f}"
            tell(f"{arm.name} on {name}: {metric} {value['value']:.4f}{spread} ({value['n']} questions)")
    finish(options, result)


def latency(options: argparse.Namespace) -> None:
    from ctplab.formats.loading import load
    from ctplab.measure.latency import latency as measure
    from ctplab.progress import bar
    from ctplab.prompts.arms import Arm
    from ctplab.prompts.prefix import none
    from ctplab.show import tables

    kinds = {"dense": False, "packed": True} if "packed" in options.weights.split(",") else {"dense": False}
    if set(options.weights.split(",")) - set(kinds):
        raise InputError(f"weights must be dense, or dense,packed, not {options.weights!r}")
    if "packed" in kinds and not manifest_of(options.model):
        raise InputError(f"{options.model} is not packed: give a folder that 'ctplab compress' wrote")
    arms = []
    for kind, packed in kinds.items():
        model, _ = load(options.model, device=options.device, dtype=options.dtype, packed=packed)
        arms.append(Arm(kind, model, none(model)))
    points = measure(
        arms,
        tokens=numbers(options.tokens, "tokens"),
        batch=options.batch,
        length=options.length,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        seed=options.seed,
        progress=bar,
    )
    say(options)(tables.latency_table(points))
    finish(options, [asdict(point) for point in points])


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, score, "perplexity (and tasks) of one arm", shared=True)
    sub.add_argument("model")
    arm_options(sub)
    sub.add_argument("--corpus", default="atlas-web", help="names, separated by commas; '' for none")
    sub.add_argument(
        "--tasks", default="", help="atlas (the embedded questions), any of lm-eval's by name, or a YAML file"
    )
    sub.add_argument("--limit", type=int, default=0, help="the first N questions of each task only")
    sub.add_argument("--as-published", action="store_true", help="also the paper's understated perplexity")
    sub.add_argument("--packed", action="store_true", help="run from packed weights: less memory, slower")
    sub.add_argument("--out", metavar="DIR", help="keep every corpus' sums here; the same command goes on from them")
    window_options(sub)

    sub = add_command(commands, latency, "time to the first token and tokens a second against k")
    sub.add_argument("model")
    sub.add_argument("--tokens", default="0,25,50,75,100", help="prompt lengths, separated by commas")
    sub.add_argument("--weights", default="dense", help="dense, or dense,packed for a ctplab folder")
    sub.add_argument("--batch", type=int, default=1)
    sub.add_argument("--length", type=int, default=128, help="text tokens before the first new one")
    sub.add_argument("--new-tokens", type=int, default=16)
    sub.add_argument("--repeats", type=int, default=5)
