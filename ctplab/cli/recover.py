"""``recover``: how much of the loss a prompt recovers, beside every control."""

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.parsing import in_flags
from ctplab.cli.shared import (
    add_command,
    attach,
    corpora_option,
    finish,
    load_full,
    load_model,
    loss_option,
    manifest_of,
    note,
    say,
    seq_len,
    window_options,
)
from ctplab.disk import slug
from ctplab.errors import InputError
from ctplab.formats.tuned import PROMPT, SOFT
from ctplab.measure.recovery import over_seeds
from ctplab.models import Model
from ctplab.models.fingerprints import same_base
from ctplab.models.loading import resolve
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
    small, tokenizer = load_model(options, options.compressed)
    full, dtype = load_full(options, options.full, small, tokenizer), check_dtypes([small])
    for prompt in saved:
        attach(options, options.compressed, prompt, small, tokenizer)
    if own is not None:
        attach(options, options.full, own, full, tokenizer)
    longest = max(ctp.hard_prompt(small, tokenizer).k, *(prompt.prefix.k for prompt in saved))
    if len(set(options.prompt)) < len(options.prompt):
        raise InputError("the same prompt folder is named twice: a spread over seeds needs prompts of several")
    others, more_bytes = tuned_arms(options, small, dtype)
    longest = max([longest, *(arm.prefix.k for arm in others)])
    length = seq_len(small, options.seq_len, longest)
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
            more_bytes=more_bytes,
            skip=skip,
            fidelity=options.fidelity,
            times=options.times,
            limit=options.windows or None,
            batch=options.batch,
            seed=options.seed + i,
        )
        runs.append(done)
        for name, found in done.corpora.items():
            tell(f"{name}, {folder}\n{tables.arms_table(found, done.costs)}")
            for line in ctp.in_words(found):
                tell(f"- {line}")
            if name in done.fidelity:
                tell(tables.fidelity_table(done.fidelity[name]))
        for arm, reason in done.left_out.items():
            tell(f"Without {arm}: {in_flags(reason, options.parser.flags)}.")
    result: dict[str, Any] = {"seq_len": length, "dtype": dtype, "corpora": {}, "words": {}, "seeds": {}}
    result["left_out"] = {arm: reason for run in runs for arm, reason in run.left_out.items()}
    result["costs"] = {name: asdict(cost) for name, cost in runs[0].costs.items()}
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


def tuned_arms(options: argparse.Namespace, small: Model, dtype: str) -> tuple[list[ctp.Arm], dict[str, int]]:
    """The arms of --tuned and --tuned-prompt, named after what was learned, and the bytes that their models add.

    ``scales+norms+soft``: a prompt learned together with the others, which lies in their folder. ``scales+norms, then
    soft``: one of --tuned-prompt, in front of the one model of --tuned whose level it names. Two models with the same
    kinds of changes are named as their tags end: ``scales+norms-1a2b3c``.
    """
    found, more = list[ctp.Arm](), dict[str, int]()
    about, models = manifest_of(options.compressed), dict[str, Any]()
    before = about.get("bytes")
    manifests = {folder: manifest_of(folder) for folder in options.tuned}
    for folder, manifest in manifests.items():
        if manifest.get("tuned") is None:
            raise InputError(f"{folder} is no model that 'ctplab tune' made")
        if manifest["tag"].partition("+")[0] != (level := str(about.get("tag")).partition("+")[0]):
            note(f"{folder} is {manifest['tag']}, not {level}: its arm does not stand for the same bytes")
    kinds = Counter("+".join(manifest["tuned"]["what"]) for manifest in manifests.values())
    for folder, manifest in manifests.items():
        model, tokenizer = load_model(options, folder)
        check_dtypes([model], [dtype])
        if not same_base(model, small):
            raise InputError(f"{folder} and {options.compressed} were compressed from different models")
        what, tag = manifest["tuned"]["what"], manifest["tag"]
        name = "+".join(what) if kinds["+".join(what)] == 1 else tag.partition("+")[2]
        if name in more:
            raise InputError(f"{folder} holds the changes of another model of --tuned: give each once")
        rows = ctp.load_prompt(Path(resolve(folder)) / PROMPT).rows()[0] if SOFT in what else none(model)
        models[tag] = arm = ctp.Arm(name, model, rows)
        found.append(arm)
        more[name] = 0 if before is None else manifest["bytes"] - before
    for folder in options.tuned_prompt:
        saved = ctp.load_prompt(folder)
        under = models.get(str(saved.info.get("tag")))
        if under is None or under.prefix.k:
            levels = ", ".join(level for level, arm in models.items() if not arm.prefix.k) or "none"
            raise InputError(f"{folder} was learned on {saved.info.get('tag')}; the levels of --tuned are: {levels}")
        for told in ctp.attach(saved, under.model, tokenizer, tag=saved.info["tag"], force=options.force):
            note(told)
        found.append(ctp.Arm(f"{under.name}, then {SOFT}", under.model, saved.prefix))
        more[found[-1].name] = more[under.name]
    return found, more


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
    sub.add_argument(
        "--tuned-prompt", nargs="+", default=[], metavar="DIR",
        help="prompts that 'ctplab learn' learned through models of --tuned: arms such as 'scales+norms, then soft'",
    )  # fmt: skip
    sub.add_argument("--times", action="store_true", help="also measure the milliseconds that each arm adds to a token")
    sub.add_argument("--fidelity", action="store_true", help="also KL to the full model, and the same first choices")
    corpora_option(sub, "--corpus", ["atlas-web"])
    loss_option(sub)
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument(
        "--out", default="runs", metavar="DIR", help="run folder: what is learned and scored; run again to go on"
    )
    window_options(sub)
