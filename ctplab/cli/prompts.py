"""``learn``: soft prompts."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ctplab.cli.shared import add_command, finish, load_model, manifest_of, say, seq_len
from ctplab.errors import InputError


def learn(options: argparse.Namespace) -> None:
    from ctplab.corpora import corpus
    from ctplab.prompts import files
    from ctplab.prompts.learn import learn
    from ctplab.specs import PromptSpec

    weights = {"nll": 0.0, "kl": 1.0, "nll,kl": 0.5}
    if options.objective not in weights:
        raise InputError(f"objective must be nll, kl or nll,kl, not {options.objective!r}")
    if options.preset == "paper":
        spec = PromptSpec.paper()
    else:
        spec = PromptSpec(
            tokens=options.tokens,
            steps=options.steps,
            batch=options.batch,
            lr=options.lr,
            init="text" if options.init_text else options.init,
            init_text=options.init_text,
            kl=weights[options.objective],
            seed=options.seed,
        )
    if spec.kl and not options.teacher:
        raise InputError("the KL objective needs --teacher MODEL, the uncompressed model")
    out = Path(options.out)
    model, tokenizer = load_model(options, options.model)
    teacher = load_model(options, options.teacher)[0] if spec.kl else None
    text = corpus(options.corpus, tokenizer, seq_len(model, options.seq_len, spec.tokens))
    learned = learn(
        model,
        text.train,
        text.validation,
        spec,
        tokenizer=tokenizer,
        teacher=teacher,
        state=out / "state.safetensors",
    )
    base = manifest_of(options.model)
    files.save(
        out,
        learned,
        spec,
        model,
        tokenizer,
        base=base.get("base", options.model),
        tag=base.get("tag", "full"),
        corpus=options.corpus,
        corpus_fingerprint=text.train.fingerprint,
        seq_len=text.seq_len,
    )
    from ctplab.measure.perplexity import Score

    score = Score(learned.best_validation * learned.validation_tokens, learned.validation_tokens)
    result = {
        "out": str(out),
        "steps": len(learned.steps),
        "seconds": round(sum(step.seconds for step in learned.steps), 2),
        "best_step": learned.best_step,
        "validation": {"nll": score.nll, "n_tokens": score.n_tokens, "ppl": score.ppl},
    }
    say(options)(f"best at step {learned.best_step}: validation ppl {score.ppl:.2f} -> {out}")
    if learned.stopped:
        print(f"ctplab: {learned.stopped}", file=sys.stderr)
    finish(options, result)
    if learned.stopped and learned.stopped.startswith("interrupted"):
        raise KeyboardInterrupt
    (out / "state.safetensors").unlink(missing_ok=True)


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(commands, learn, "a soft prompt through frozen weights; resumes")
    sub.add_argument("model")
    sub.add_argument("--corpus", default="atlas-web")
    sub.add_argument("--tokens", type=int, default=100)
    sub.add_argument("--steps", type=int, default=1000)
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--lr", type=float, default=0.03)
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--objective", default="nll", help="nll, kl or nll,kl")
    sub.add_argument("--teacher", metavar="MODEL", help="the full model, for kl")
    sub.add_argument("--init", default="vocab-random", choices=("vocab-random", "vocab-first"))
    sub.add_argument("--init-text", metavar="TEXT")
    sub.add_argument("--preset", choices=("paper",), help="the paper's recipe (30,000 steps)")
    sub.add_argument("--out", required=True, metavar="DIR")
