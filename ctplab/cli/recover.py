"""``recover``: how much of the loss a prompt recovers, beside every control."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import (
    add_command,
    attach,
    corpora_option,
    finish,
    in_flags,
    load_model,
    loss_option,
    manifest_of,
    say,
    seq_len,
    window_options,
)
from ctplab.disk import slug
from ctplab.errors import InputError
from ctplab.measure.recovery import over_seeds
from ctplab.progress import bar
from ctplab.prompts.arms import check_dtypes
from ctplab.prompts.prefix import none
from ctplab.runs.controls import LEARNED
from ctplab.show import tables


def recover(options: argparse.Namespace) -> None:
    """Score every arm on every corpus; several prompts are seeds of one recipe."""
    skip = list(filter(None, options.skip.split(",")))
    if not set(skip) <= set(LEARNED):
        raise InputError(f"--skip takes {', '.join(LEARNED)}, not {options.skip!r}")
    if not options.corpus:
        raise InputError("give at least one --corpus")
    saved = [ctp.load_prompt(folder) for folder in options.prompt]
    own = ctp.load_prompt(options.full_prompt) if options.full_prompt else None
    full, tokenizer = load_model(options, options.full)
    small, _ = load_model(options, options.compressed)
    dtype = check_dtypes([full, small])
    for prompt in saved:
        attach(options, options.compressed, prompt, small, tokenizer)
    if own is not None:
        attach(options, options.full, own, full, tokenizer)
    longest = max(ctp.hard_prompt(small, tokenizer).k, *(prompt.prefix.k for prompt in saved))
    length = seq_len(small, options.seq_len, longest)
    others = [tuned_arm(options, folder, dtype) for folder in options.tuned]
    study = ctp.Study(ctp.Store(Path(options.out), options.full), full, tokenizer, bar)
    tag = manifest_of(options.compressed).get("tag") or slug(options.compressed)
    texts = [ctp.corpus(name, tokenizer, length, loss=options.loss) for name in options.corpus]
    tell = say(options)
    runs = []
    for i, (folder, prompt) in enumerate(zip(options.prompt, saved, strict=True)):
        done = ctp.recover_with_controls(
            study,
            tag,
            small,
            prompt,
            texts,
            ctp.kept_in(study.store.recovery(tag, folder)),
            own=own.prefix if own else None,
            others=others,
            skip=skip,
            fidelity=options.fidelity,
            limit=options.windows or None,
            batch=options.batch,
            seed=options.seed + i,
        )
        runs.append(done)
        for name, found in done.corpora.items():
            tell(f"{name}, {folder}\n{tables.arms_table(found)}")
            for line in ctp.in_words(found):
                tell(f"- {line}")
            if name in done.fidelity:
                tell(tables.fidelity_table(done.fidelity[name]))
        for arm, reason in done.left_out.items():
            tell(f"Without {arm}: {in_flags(reason, options.parser.flags)}.")
    result: dict[str, Any] = {"seq_len": length, "dtype": dtype, "corpora": {}, "words": {}, "seeds": {}}
    result["left_out"] = {arm: reason for run in runs for arm, reason in run.left_out.items()}
    for text in texts:
        found = [run.corpora[text.name] for run in runs]
        rows = [{name: asdict(arm) | {"ppl": arm.ppl} for name, arm in run.items()} for run in found]
        result["corpora"][text.name] = rows if len(rows) > 1 else rows[0]
        result["words"][text.name] = ctp.in_words(found[0])
        if options.fidelity:
            close = [{arm: value.summary() for arm, value in run.fidelity[text.name].items()} for run in runs]
            result.setdefault("fidelity", {})[text.name] = close if len(close) > 1 else close[0]
        if len(found) > 1:
            spread = over_seeds(found)
            result["seeds"][text.name] = {arm: asdict(value) for arm, value in spread.items()}
            tell(f"{text.name}\n{tables.seeds_table(spread)}")
    finish(options, result)


def tuned_arm(options: argparse.Namespace, folder: str, dtype: str) -> ctp.Arm:
    """The arm of a model that 'ctplab tune' made, named after what was tuned: ``scales+norms``."""
    made_from = manifest_of(folder).get("tuned")
    if made_from is None:
        raise InputError(f"{folder} is no model that 'ctplab tune' made")
    model, _ = load_model(options, folder)
    check_dtypes([model], [dtype])
    return ctp.Arm("+".join(made_from["what"]), model, none(model))


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "recover", recover, "how much of the loss a prompt recovers, beside its controls")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", required=True, nargs="+", metavar="DIR", help="several: the same recipe, other seeds")
    sub.add_argument(
        "--full-prompt", metavar="DIR", help="for full+own: learned on the full model already (default: learned now)"
    )
    sub.add_argument(
        "--skip", default="", metavar="ARMS", help="full+own,lora: controls not to learn, each as long as the prompt"
    )
    sub.add_argument(
        "--tuned", nargs="+", default=[], metavar="DIR", help="models that 'ctplab tune' made: arms of the same bytes"
    )
    sub.add_argument("--fidelity", action="store_true", help="also KL to the full model, and the same first choices")
    corpora_option(sub, "--corpus", ["atlas-web"])
    loss_option(sub)
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument(
        "--out", default="runs", metavar="DIR", help="run folder: what is learned and scored; run again to go on"
    )
    window_options(sub)
