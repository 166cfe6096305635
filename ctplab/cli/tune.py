"""``tune``: what a compressed model can change without a new byte."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab import parallel
from ctplab.cli.learn import prompt_options, recipe, recipe_options, teacher_of
from ctplab.cli.shared import add_command, at_least, finish, load_model, manifest_of, note, say, seq_len
from ctplab.errors import InputError
from ctplab.formats.checkpoint import read_manifest
from ctplab.formats.tuned import KINDS, MANIFEST, PROMPT, SOFT, changes_between, fold, tuned_from
from ctplab.learning.rows import initial_rows
from ctplab.learning.saving import made_tuned, save_tuned
from ctplab.learning.tuned import RATE
from ctplab.models.fingerprints import one_base
from ctplab.models.loading import resolve
from ctplab.progress import bar

TOLD = ("steps", "best_step", "validation")


def kinds_in(text: str) -> list[str]:
    """The kinds of changes that a --what names, each once, perhaps with a prompt. Raises InputError for others."""
    what = list(dict.fromkeys(filter(None, text.split(","))))
    if not what or not set(what) <= {*KINDS, SOFT}:
        raise InputError(f"--what takes {', '.join((*KINDS, SOFT))}, not {text!r}")
    return what


def tune(options: argparse.Namespace) -> None:
    """Learn the changes, and write a folder of the same bytes; the same command goes on where it stopped."""
    if options.like:
        return like(options)
    if options.lr is None and options.preset is None:
        options.lr = RATE
    spec, out, folder = recipe(options), Path(options.out), Path(resolve(options.model))
    read_manifest(folder)  # before any text is read
    what = kinds_in(options.what)
    kinds = [kind for kind in what if kind != SOFT]
    if what == [SOFT]:
        raise InputError("a prompt alone is what 'ctplab learn' learns: give --what scales,norms,soft, for example")
    before = tuned_from(out)
    model, tokenizer = load_model(options, options.model)
    k = spec.tokens if SOFT in what else 0
    text = ctp.corpus(options.corpus, tokenizer, seq_len(model, options.seq_len, k), loss=options.loss)
    teacher = teacher_of(options, text.train, tokenizer) if spec.taught else None
    earlier = ctp.load_prompt(options.init_prompt).rows()[0] if options.init_prompt else None
    prompt = initial_rows(model, spec, tokenizer, text.train, earlier) if k else None
    made_from = made_tuned(what, options.rank, spec, model, options.model, options.corpus, text.train)
    if before is not None:
        if {key: before.get(key) for key in made_from} != made_from:
            raise InputError(f"{out} holds a model that was tuned otherwise: choose another --out")
        note(f"{out} is there already, tuned as this command says")
        finish(options, {"out": str(out)} | {key: before[key] for key in TOLD})
        return
    state = out.with_name(f"{out.name}.state.safetensors")
    learned = ctp.learn_tuned(
        model, folder, kinds, text.train, text.validation, spec, rank=options.rank, prompt=prompt, teacher=teacher,
        state=state, progress=bar,
    )  # fmt: skip
    if not parallel.is_main():
        return
    if learned.stopped and learned.stopped.startswith("interrupted"):
        note(f"{learned.stopped}; the same command goes on")
        raise KeyboardInterrupt
    score = learned.validation
    manifest = save_tuned(
        learned, folder, out, made_from, spec, model, tokenizer, corpus=options.corpus,
        loss="all" if text.train.mask is None else "answers", corpus_fingerprint=text.train.fingerprint,
        seq_len=text.seq_len,
    )  # fmt: skip
    about = {key: manifest["tuned"][key] for key in TOLD}
    state.unlink(missing_ok=True)
    told = f"best at step {learned.best_step}: validation ppl {score.ppl:.2f}, {manifest['bytes']:,} bytes as before"
    say(options)(f"{told} -> {out}")
    for line in filter(None, [learned.stopped, *learned.warnings]):
        note(line)
    if learned.not_recorded:
        note(f"the card was given its work kernel by kernel: {learned.not_recorded}")
    finish(options, {"out": str(out), "tag": manifest["tag"], "bytes": manifest["bytes"], **about})


def like(options: argparse.Namespace) -> None:
    """Carry another copy's scales and norms over to MODEL."""
    options.parser.check_unused(options, ("like", "out", "json", "seed", "device", "dtype"), "beside --like")
    folder, out, other = Path(resolve(options.model)), Path(options.out), Path(options.like)
    mine, its = read_manifest(folder), manifest_of(options.like)
    made_from = its.get("tuned")
    if made_from is None:
        raise InputError(f"{other} is no model that 'ctplab tune' made")
    found_by = "its factors are found by comparing them"
    if not made_from.get("from"):
        raise InputError(f"{other} does not say which folder it was tuned from: {found_by}")
    source = Path(resolve(made_from["from"]))
    if not (source / MANIFEST).exists():
        raise InputError(f"{other} was tuned from {source}, which is not here: {found_by}")
    if not one_base(its, mine):
        note(f"{other} and {folder} have other embeddings: were they compressed from one model?")
    if its["spec"] != mine["spec"]:
        note(f"{other} is {its['tag']}, this is {mine['tag']}: what was learned at another level may do harm")
    kinds = [kind for kind in made_from["what"] if kind != SOFT]
    if SOFT in made_from["what"]:
        note(f"its prompt stays where it is: 'ctplab learn --init-prompt {other / PROMPT}' goes on from it")
    about = {"what": kinds, "from": options.model, "like": options.like, "tag": its["tag"]}
    before = tuned_from(out)
    if before is not None:
        if before != about:
            raise InputError(f"{out} holds a model that was tuned otherwise: choose another --out")
        note(f"{out} is there already, made as this command says")
        manifest = read_manifest(out)
        finish(options, {"out": str(out), "tag": manifest["tag"], "bytes": manifest["bytes"]})
        return
    changes = changes_between(source, other)
    manifest = fold(folder, out, changes, about)
    say(options)(f"{len(changes)} changes of {other}, {manifest['bytes']:,} bytes as before -> {out}")
    finish(options, {"out": str(out), "tag": manifest["tag"], "bytes": manifest["bytes"]})


def register(commands: Any) -> None:
    """Add the command."""
    about = "a compressed model's scales, norms, codes or kept values: the same bytes; resumes"
    sub = add_command(commands, "tune", tune, about, shared=True)
    sub.add_argument("model", help="a folder that 'ctplab compress' made")
    sub.add_argument(
        "--what", default="scales,norms",
        help=f"{', '.join((*KINDS, SOFT))}, separated by commas (scales,norms); soft: a prompt learned with them; "
        "codes: every weight's, through the rounding, in 25 bytes of memory a weight; low-rank: a few numbers a "
        "row and column instead",
    )  # fmt: skip
    sub.add_argument(
        "--like", metavar="DIR",
        help="learn nothing: put what this tuned model learned on MODEL, another compression of the same base",
    )  # fmt: skip
    sub.add_argument("--rank", type=at_least(1), default=8, help="of low-rank updates (8)")
    recipe_options(sub, f"{RATE:g}")
    prompt_options(sub)
    sub.add_argument("--out", required=True, metavar="DIR")
