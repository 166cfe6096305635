"""``score``, ``recover``, ``transfer`` and ``latency``: what an arm is worth, and what it costs."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctplab.cli.shared import (
    add_command,
    arm_options,
    attach,
    chosen_arm,
    finish,
    load_model,
    manifest_of,
    numbers,
    say,
    seq_len,
)
from ctplab.errors import InputError


def score(options: argparse.Namespace) -> None:
    from ctplab.corpora import corpus
    from ctplab.measure.keep import compute_always, kept_nll
    from ctplab.measure.perplexity import Score
    from ctplab.progress import bar
    from ctplab.store import kept_in

    model, tokenizer = load_model(options, options.model, options.packed)
    arm = chosen_arm(options, model, tokenizer)
    length = seq_len(model, options.seq_len, arm.prefix.k)
    result: dict[str, Any] = {"arm": arm.name, "seq_len": length, "corpora": {}, "tasks": {}}
    tell = say(options)
    keep = kept_in(Path(options.out)) if options.out else compute_always
    for name in filter(None, options.corpus.split(",")):
        windows = corpus(name, tokenizer, length).test.windows[: options.windows or None]
        sums = kept_nll(keep, f"{arm.name}--{name}", arm, windows, batch=options.batch, progress=bar)
        found = Score(float(sums.sum()), windows.shape[0] * (windows.shape[1] - 1))
        row = {"nll": found.nll, "n_tokens": found.n_tokens, "ppl": found.ppl}
        told = f"{arm.name} on {name}: {found}"
        if options.as_published:
            row["ppl_as_published"] = found.ppl_as_published(arm.prefix.k, length)
            told += f"; as the paper's code would print it {row['ppl_as_published']:.2f}"
        result["corpora"][name] = row
        tell(told)
    names = list(filter(None, options.tasks.split(",")))
    if "atlas" in names:
        result["tasks"]["atlas"] = _ask_atlas(arm, tokenizer)
    harness = [name for name in names if name != "atlas"]
    if harness:
        from ctplab.measure.tasks import evaluate

        asked = evaluate(arm, tokenizer, harness, limit=options.limit or None, batch=options.batch, seed=options.seed)
        for name, found in asked.items():
            result["tasks"][name] = {metric: asdict(value) for metric, value in found.metrics.items()}
            result["marks"] = result.get("marks", {}) | {name: found.marks}
    for name, metrics in result["tasks"].items():
        for metric, value in metrics.items():
            spread = "" if value["stderr"] is None else f" ± {value['stderr']:.4f}"
            tell(f"{arm.name} on {name}: {metric} {value['value']:.4f}{spread} ({value['n']} questions)")
    finish(options, result)


def _ask_atlas(arm: Any, tokenizer: Any) -> dict[str, Any]:
    from ctplab.atlas.questions import questions
    from ctplab.measure.questions import answers, marks
    from ctplab.progress import bar

    asked = list(questions())
    right = marks(answers(arm, tokenizer, asked, progress=bar), asked)
    share = sum(right) / len(asked)
    return {"exact_match": {"value": share, "stderr": (share * (1 - share) / len(asked)) ** 0.5, "n": len(asked)}}


def recover(options: argparse.Namespace) -> None:
    from ctplab import tables
    from ctplab.corpora import corpus
    from ctplab.measure.recovery import comparison, in_words, over_seeds
    from ctplab.measure.recovery import recover as measure
    from ctplab.progress import bar
    from ctplab.prompts import files, prefix
    from ctplab.store import kept_in

    full, tokenizer = load_model(options, options.full)
    small, _ = load_model(options, options.compressed)
    saved = [files.load(folder) for folder in options.prompt]
    own = files.load(options.full_prompt) if options.full_prompt else None
    for prompt in saved:
        attach(options, options.compressed, prompt, small, tokenizer)
    if own is not None:
        attach(options, options.full, own, full, tokenizer)
    longest = max(prefix.hard(small, tokenizer).k, *(prompt.prefix.k for prompt in saved))
    length = seq_len(small, options.seq_len, longest)
    tell = say(options)
    result: dict[str, Any] = {"seq_len": length, "corpora": {}, "words": {}, "seeds": {}}
    for name in options.corpus.split(","):
        text = corpus(name, tokenizer, length)
        runs = []
        for i, (folder, prompt) in enumerate(zip(options.prompt, saved, strict=True)):
            arms = comparison(
                full,
                small,
                tokenizer,
                prompt.prefix,
                initial=prompt.initial,
                text=text.validation.stream,
                full_own=own.prefix if own else None,
                seed=options.seed + i,
            )
            more: dict[str, Any] = {"keep": kept_in(Path(options.out) / Path(folder).name)} if options.out else {}
            limit = options.windows or None
            runs.append(
                measure(arms, text.test, batch=options.batch, limit=limit, seed=options.seed, progress=bar, **more)
            )
            tell(f"{name}, {folder}\n{tables.arms_table(runs[-1])}")
            for line in in_words(runs[-1]):
                tell(f"- {line}")
        rows = [{arm: asdict(found) | {"ppl": found.ppl} for arm, found in run.items()} for run in runs]
        result["corpora"][name] = rows if len(rows) > 1 else rows[0]
        result["words"][name] = in_words(runs[0])
        if len(runs) > 1:
            spread = over_seeds(runs)
            result["seeds"][name] = {arm: asdict(value) for arm, value in spread.items()}
            tell(tables.seeds_table(spread))
    finish(options, result)


def transfer(options: argparse.Namespace) -> None:
    from ctplab import tables
    from ctplab.compress.checkpoint import write_json
    from ctplab.measure.transfer import Target, home
    from ctplab.measure.transfer import transfer as measure
    from ctplab.progress import bar
    from ctplab.prompts import files
    from ctplab.store import kept_in

    sources = {_name(folder, options.prompts): files.load(folder) for folder in options.prompts}
    if len(sources) < len(options.prompts):
        raise InputError("the same prompt folder is named twice")
    targets = [
        Target(
            _name(model, options.targets),
            home(manifest_of(model) or {"base": model}),
            lambda model=model: load_model(options, model),
        )
        for model in options.targets
    ]
    more: dict[str, Any] = {"keep": kept_in(Path(options.out).with_suffix(".cells"))} if options.out else {}
    cells = measure(
        sources,
        targets,
        options.corpora.split(","),
        seq_len=options.seq_len,
        limit=options.windows or None,
        batch=options.batch,
        force=options.force,
        progress=bar,
        **more,
    )
    result = {"seq_len": options.seq_len, "cells": [cell.to_json() for cell in cells]}
    if options.out:
        write_json(Path(options.out), result)
    for name in options.corpora.split(","):
        say(options)(f"{name}: perplexity, and the change in nats a token against no prompt [95%]")
        say(options)(tables.matrix_table([cell for cell in cells if cell.corpus == name]))
    finish(options, result)


def _name(folder: str, among: list[str]) -> str:
    """The folder's last part, or all of it where that is not unique."""
    last = Path(folder).name
    return last if [Path(other).name for other in among].count(last) == 1 else folder


def latency(options: argparse.Namespace) -> None:
    from ctplab import tables
    from ctplab.compress.loading import load
    from ctplab.measure.latency import latency as measure
    from ctplab.progress import bar
    from ctplab.prompts.kv import Arm
    from ctplab.prompts.prefix import none

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
    sub.add_argument("--tasks", default="", help="atlas (the embedded questions), or any of lm-eval's by name")
    sub.add_argument("--limit", type=int, default=0, help="the first N questions of each of lm-eval's tasks only")
    sub.add_argument("--as-published", action="store_true", help="also the paper's understated perplexity")
    sub.add_argument("--packed", action="store_true", help="run from packed weights: less memory, slower")
    sub.add_argument("--out", metavar="DIR", help="keep every corpus' sums here; the same command goes on from them")
    _windows(sub)

    sub = add_command(commands, recover, "how much of the loss a prompt recovers, beside its controls")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", required=True, nargs="+", metavar="DIR", help="several: the same recipe, other seeds")
    sub.add_argument("--full-prompt", metavar="DIR", help="a prompt learned on the full model with the same budget")
    sub.add_argument("--corpus", default="atlas-web", help="names, separated by commas")
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument("--out", metavar="DIR", help="keep every arm's sums here; the same command goes on from them")
    _windows(sub)

    sub = add_command(commands, transfer, "prompts of one model on others: the source x target matrix")
    sub.add_argument("--prompts", required=True, nargs="+", metavar="DIR")
    sub.add_argument("--targets", required=True, nargs="+", metavar="MODEL")
    sub.add_argument("--corpora", required=True, help="names, separated by commas")
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument("--out", metavar="FILE", help="write JSON here; cells are kept beside it and not computed twice")
    _windows(sub, default_length=256)

    sub = add_command(commands, latency, "time to the first token and tokens a second against k")
    sub.add_argument("model")
    sub.add_argument("--tokens", default="0,25,50,75,100", help="prompt lengths, separated by commas")
    sub.add_argument("--weights", default="dense", help="dense, or dense,packed for a ctplab folder")
    sub.add_argument("--batch", type=int, default=1)
    sub.add_argument("--length", type=int, default=128, help="text tokens before the first new one")
    sub.add_argument("--new-tokens", type=int, default=16)
    sub.add_argument("--repeats", type=int, default=5)


def _windows(sub: argparse.ArgumentParser, default_length: int = 0) -> None:
    text = "tokens a window" + ("" if default_length else " (default: 1024, or what fits behind the prompt)")
    sub.add_argument("--seq-len", type=int, default=default_length, help=text)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--batch", type=int, default=16, help="windows a forward pass")
