"""``learn``: a soft prompt."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab import parallel
from ctplab.cli.numbers import at_least, real, words
from ctplab.cli.parsing import Parser
from ctplab.cli.shared import (
    add_command,
    check_words,
    corpora_option,
    finish,
    load_model,
    loss_option,
    manifest_of,
    note,
    note_replaced,
    say,
    seq_len,
)
from ctplab.errors import InputError
from ctplab.formats.prompt_file import MANIFEST
from ctplab.models import Tokenizer
from ctplab.models.fingerprints import copy_fingerprint, tokenizer_fingerprint
from ctplab.models.loading import local_folder
from ctplab.progress import bar
from ctplab.text.corpora import MOST_SAMPLES

OBJECTIVES = {"nll": 0.0, "kl": 1.0, "nll,kl": 0.5}


def recipe(options: argparse.Namespace) -> ctp.PromptSpec:
    """The preset's recipe with what the command line changes."""
    if options.objective not in OBJECTIVES:
        raise InputError(f"objective must be nll, kl or nll,kl, not {options.objective!r}")
    if sum(x is not None for x in (options.init, options.init_text, options.init_prompt)) > 1:
        raise InputError("give one of --init, --init-text and --init-prompt")
    init = "text" if options.init_text else "prompt" if options.init_prompt else options.init
    changes = {
        name: getattr(options, name)
        for name in ("tokens", "steps", "batch", "lr", "patience", "accumulate", "seed", "noise")
        if getattr(options, name, None) is not None
    }
    if init is not None:
        changes |= {"init": init, "init_text": options.init_text}
    kl = options.kl_weight if options.kl_weight is not None else OBJECTIVES[options.objective]
    preset = ctp.PromptSpec.paper() if options.preset == "paper" else ctp.PromptSpec()
    spec = replace(preset, kl=kl, hidden=options.hidden or 0.0, **changes)  # refuses what no recipe may be
    if spec.taught and not options.teacher:
        what = "the KL objective" if kl else "--hidden"
        raise InputError(f"{what} needs --teacher MODEL, the uncompressed model")
    if spec.noise and not options.teacher:
        raise InputError("noise is measured by the rounding error: it needs --teacher MODEL, the uncompressed model")
    if options.teacher_cache and not options.teacher:
        raise InputError("--teacher-cache needs --teacher MODEL")
    if options.teacher_cache and spec.hidden:
        raise InputError("--hidden needs the full model at every step: leave --teacher-cache out")
    return spec


def teacher_of(options: argparse.Namespace, train: ctp.Split, tokenizer: Tokenizer) -> Any:
    """The full model, or its likeliest tokens on the training text if --teacher-cache keeps them."""
    model, its_own = load_model(options, options.teacher)
    check_words(options.teacher, its_own, tokenizer)
    if options.teacher_cache is None:
        return model
    if not parallel.is_main():
        parallel.wait()  # the main process writes, the others read
    found = ctp.cached_teacher(model, train, Path(options.teacher_cache), k=options.teacher_top, progress=bar)
    if parallel.is_main():
        parallel.wait()
    return found


def copying(options: argparse.Namespace, what: str) -> tuple[str, ctp.CompressionSpec, list[ctp.Split]]:
    """How the first MODEL was made: its base, its settings, and texts to calibrate more copies on."""
    manifest = manifest_of(options.model[0])
    if not manifest:
        raise InputError(f"{what} makes more copies of a compressed model, which {options.model[0]} is not")
    base = options.teacher or manifest["base"]
    tokenizer = ctp.load_tokenizer(local_folder(base))
    length = options.seq_len or 256
    texts = [ctp.corpus(name, tokenizer, length).train for name in options.calibration or [options.corpus]]
    return base, ctp.CompressionSpec.from_json(manifest["spec"]), texts


def recompressed(options: argparse.Namespace, folder: Path) -> list[str]:
    """Make the copies that --recompress asks for; returns their folders."""
    base, spec, texts = copying(options, "--recompress")
    tokenizer, n = ctp.load_tokenizer(local_folder(base)), options.recompress
    how: dict[str, Any] = {"samples": options.samples, "seed": options.seed + 1}
    made = ctp.recompress(base, folder, tokenizer, texts, spec, n, device=options.device, dtype=options.dtype, **how)
    return [str(copy) for copy in made]


def redrawn(options: argparse.Namespace) -> ctp.Redraw:
    """The model that --redraw compresses anew as learning goes, with other windows than those of --recompress."""
    base, spec, texts = copying(options, "--redraw")
    how: dict[str, Any] = {"samples": options.samples, "seed": options.seed + 1 + (options.recompress or 0)}
    return ctp.Redraw(load_model(options, base)[0], texts, spec, every=options.redraw, **how)


def learn(options: argparse.Namespace) -> None:
    """Learn a prompt into --out; the same command goes on where it stopped."""
    spec = recipe(options)
    out = Path(options.out)
    if options.recompress:
        options.model += recompressed(options, out / "copies")
    loaded = [load_model(options, name, options.packed) for name in options.model]
    models, tokenizer = [ctp.recompute(model) if options.recompute else model for model, _ in loaded], loaded[0][1]
    if len({tokenizer_fingerprint(tokenizer) for _, tokenizer in loaded}) > 1:
        raise InputError("the models have different tokenizers: one prompt cannot be learned on them")
    wanted = options.seq_len or (1024 if options.preset == "paper" else 0)
    text = ctp.corpus(options.corpus, tokenizer, seq_len(models[0], wanted, spec.tokens), loss=options.loss)
    made_from = {"spec": spec.to_json(), "corpus_fingerprint": text.train.fingerprint}
    note_replaced(out / MANIFEST, made_from | {"copies": [copy_fingerprint(model) for model in models]})
    redraw = redrawn(options) if options.redraw else None
    learned = ctp.learn(
        models,
        text.train,
        text.validation,
        spec,
        tokenizer=tokenizer,
        teacher=teacher_of(options, text.train, tokenizer) if spec.needs_full else None,
        earlier=ctp.load_prompt(options.init_prompt).rows()[0] if options.init_prompt else None,
        state=out / "state.safetensors",
        redraw=redraw,
    )
    if not parallel.is_main():
        return
    bases = [manifest_of(name) for name in options.model]
    ctp.save_prompt(
        learned,
        out,
        spec,
        models,
        tokenizer,
        base=bases[0].get("base", options.model[0]),
        tag="+".join(dict.fromkeys(base.get("tag", "full") for base in bases)),
        corpus=options.corpus,
        loss="all" if text.train.mask is None else "answers",
        corpus_fingerprint=text.train.fingerprint,
        seq_len=text.seq_len,
        init_prompt=options.init_prompt,
        drawn=redraw.draws(len(learned.steps) // (len(models) + 1)) if redraw else 0,
    )
    score = learned.validation
    result = {
        "out": str(out),
        "steps": len(learned.steps),
        "seconds": round(sum(step.seconds for step in learned.steps), 2),
        "best_step": learned.best_step,
        "validation": {"nll": score.nll, "n_tokens": score.n_tokens, "ppl": score.ppl},
        "warnings": learned.warnings,
    }
    say(options)(f"best at step {learned.best_step}: validation ppl {score.ppl:.2f} -> {out}")
    if learned.stopped:
        note(learned.stopped)
    for warning in learned.warnings:
        note(warning)
    if learned.not_recorded:
        note(f"the card was given its work kernel by kernel: {learned.not_recorded}")
    finish(options, result)
    if learned.stopped and learned.stopped.startswith("interrupted"):
        raise KeyboardInterrupt
    (out / "state.safetensors").unlink(missing_ok=True)


def recipe_options(sub: Parser, rate: str = "0.03") -> None:
    """Add the options of a recipe, for whatever is learned; :func:`recipe` and :func:`teacher_of` read them."""
    sub.add_argument("--corpus", default="atlas-web")
    loss_option(sub)
    sub.add_argument("--steps", type=at_least(1), help="1000; the paper's preset: 30,000")
    sub.add_argument("--batch", type=at_least(1), help="windows a step, over all processes (16; paper: 4)")
    sub.add_argument("--accumulate", type=at_least(1), metavar="N", help="a batch in N pieces, to save memory")
    sub.add_argument("--lr", type=real, help=f"{rate}; paper: 0.001")
    sub.add_argument("--patience", type=at_least(1), metavar="N", help="stop after N validations without a better one")
    sub.add_argument("--seq-len", type=at_least(0), default=0)
    sub.add_argument("--objective", default="nll", help="nll, kl or nll,kl (half each)")
    sub.add_argument("--kl-weight", type=real, metavar="W", help="any mix: (1 - W) nll + W kl")
    sub.add_argument(
        "--hidden", type=real, metavar="W",
        help="weight of the distance to the full model's last hidden states; 1 - W is that of the objective",
    )  # fmt: skip
    sub.add_argument("--teacher", metavar="MODEL", help="the full model, for kl and --hidden")
    sub.add_argument("--teacher-cache", metavar="DIR", help="keep the teacher's likeliest tokens there, computed once")
    sub.add_argument("--teacher-top", type=at_least(1), default=64, metavar="K", help="how many a position (64)")
    sub.add_argument("--preset", choices=("paper",), help="the paper's recipe; other options change it")


def prompt_options(sub: Parser) -> None:
    """Add the options of a soft prompt's rows and their start."""
    sub.add_argument("--tokens", type=at_least(1), metavar="K", help="rows of the prompt (100)")
    sub.add_argument("--init", choices=("vocab-random", "vocab-first", "frequent"), help="vocab-random")
    sub.add_argument("--init-text", type=words, metavar="TEXT", help="start from a text's tokens")
    sub.add_argument("--init-prompt", metavar="DIR", help="start from an earlier prompt, cut or repeated to --tokens")


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "learn", learn, "a soft prompt through frozen weights; resumes", shared=True)
    sub.add_argument("model", nargs="+", help="several models (of one base) take turns: one prompt for all of them")
    recipe_options(sub)
    prompt_options(sub)
    sub.add_argument(
        "--recompress", type=at_least(1), metavar="N",
        help="compress MODEL's base N times more to its level, and learn on all of them: a prompt for other copies too",
    )  # fmt: skip
    sub.add_argument(
        "--redraw", type=at_least(1), metavar="N",
        help="one more copy takes its turn, and is compressed anew after every N turns",
    )  # fmt: skip
    sub.add_argument(
        "--noise", type=real, metavar="S",
        help="noise on the weights in every step, S times as large as their rounding error (needs --teacher)",
    )  # fmt: skip
    corpora_option(sub, "--calibration", about="texts that these copies are calibrated on, in turn")
    sub.add_argument("--samples", type=at_least(1, MOST_SAMPLES), default=64, help="calibration windows of the copies")
    sub.add_argument("--recompute", action="store_true", help="compute blocks again in the backward pass: less memory")
    sub.add_argument("--packed", action="store_true", help="run from packed weights: less memory, slower")
    sub.add_argument("--out", required=True, metavar="DIR")
