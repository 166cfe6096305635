"""``tune``: what a compressed model can change without a new byte."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.learn import recipe, recipe_options, teacher_of
from ctplab.cli.shared import add_command, at_least, finish, load_model, note, say, seq_len
from ctplab.errors import InputError
from ctplab.formats.tuned import KINDS, fold, tuned_from
from ctplab.models.fingerprints import weights_fingerprint
from ctplab.models.loading import resolve
from ctplab.progress import bar


def tune(options: argparse.Namespace) -> None:
    """Learn the changes, and write a folder of the same bytes; the same command goes on where it stopped."""
    spec, out, folder = recipe(options), Path(options.out), Path(resolve(options.model))
    what = list(dict.fromkeys(filter(None, options.what.split(","))))
    before = tuned_from(out)
    model, tokenizer = load_model(options, options.model)
    text = ctp.corpus(options.corpus, tokenizer, seq_len(model, options.seq_len), loss=options.loss)
    teacher = teacher_of(options, text.train) if spec.kl else None
    made_from = {
        "what": what, "rank": options.rank, "spec": spec.to_json(), "from": options.model, "corpus": options.corpus,
        "corpus_fingerprint": text.train.fingerprint, "weights_fingerprint": weights_fingerprint(model),
    }  # fmt: skip
    if before is not None:
        if {key: before.get(key) for key in made_from} != made_from:
            raise InputError(f"{out} holds a model that was tuned otherwise: choose another --out")
        note(f"{out} is there already, tuned as this command says")
        finish(options, {"out": str(out)} | {key: before[key] for key in ("steps", "best_step", "validation")})
        return
    state = out.with_name(f"{out.name}.state.safetensors")
    learned = ctp.learn_tuned(
        model, folder, what, text.train, text.validation, spec, rank=options.rank, teacher=teacher, state=state,
        progress=bar,
    )  # fmt: skip
    if learned.stopped and learned.stopped.startswith("interrupted"):
        note(f"{learned.stopped}; the same command goes on")
        raise KeyboardInterrupt
    score = learned.validation
    about = {
        "steps": len(learned.steps),
        "best_step": learned.best_step,
        "validation": {"nll": score.nll, "n_tokens": score.n_tokens, "ppl": score.ppl},
    }
    curve = [vars(step) for step in learned.steps]
    manifest = fold(folder, out, learned.prefix.tensors, made_from | about | {"curve": curve})
    state.unlink(missing_ok=True)
    told = f"best at step {learned.best_step}: validation ppl {score.ppl:.2f}, {manifest['bytes']} bytes as before"
    say(options)(f"{told} -> {out}")
    for line in filter(None, [learned.stopped, *learned.warnings]):
        note(line)
    finish(options, {"out": str(out), "tag": manifest["tag"], "bytes": manifest["bytes"], **about})


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "tune", tune, "a compressed model's scales, norms or kept values: the same bytes")
    sub.add_argument("model", help="a folder that 'ctplab compress' made")
    sub.add_argument("--what", default="scales,norms", help=f"{', '.join(KINDS)}, separated by commas (scales,norms)")
    sub.add_argument("--rank", type=at_least(1), default=8, help="of low-rank updates, for pruned models (8)")
    recipe_options(sub)
    sub.add_argument("--out", required=True, metavar="DIR")
