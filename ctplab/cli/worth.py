"""``worth``: what each row of a prompt is worth, and how much of a text's attention it gets."""

import argparse
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.latency import numbers
from ctplab.cli.parsing import Parser
from ctplab.cli.shared import (
    add_command,
    attach,
    finish,
    load_model,
    loss_option,
    note,
    say,
    seq_len,
    window_options,
)
from ctplab.disk import compute_always, kept_in
from ctplab.errors import InputError
from ctplab.measure.attention_mass import AttentionMass
from ctplab.measure.worth import in_words
from ctplab.progress import bar
from ctplab.prompts.prefix import none
from ctplab.show import axes, row_tables, rows


def worth(options: argparse.Namespace) -> None:
    """Leave out every row once; with --out a stopped command goes on where it stopped."""
    if options.figure:
        axes.check_picture(Path(options.figure))
    saved = ctp.load_prompt(options.prompt)
    some = None if options.rows is None else numbers(options.rows, "--rows")
    if some is not None and not all(0 <= row < saved.prefix.k for row in some):
        raise InputError(f"--rows takes numbers from 0 to {saved.prefix.k - 1}")
    model, tokenizer = load_model(options, options.model)
    attach(options, options.model, saved, model, tokenizer)
    length = seq_len(model, options.seq_len, saved.prefix.k)
    text = ctp.corpus(options.corpus, tokenizer, length, loss=options.loss).test
    keep = kept_in(Path(options.out)) if options.out else compute_always
    how: dict[str, Any] = {"limit": options.windows or None, "batch": options.batch, "keep": keep, "progress": bar}
    arm = ctp.Arm("soft", model, saved.prefix)
    alone = ctp.window_scores(ctp.Arm("none", model, none(model)), text, name="none", **how)
    gain = ctp.change(alone, ctp.window_scores(arm, text, name="whole", **how), seed=options.seed)
    mass = attention(arm, text, how)
    found = list(ctp.row_worth(arm, text, rows=some, seed=options.seed, **how))
    words = in_words(found, gain if some is None else None)
    tell = say(options)
    tell(row_tables.worth_table(found, mass))
    for line in words:
        tell(f"- {line}")
    if options.figure:
        axes.save(rows.draw_worth(found, mass), Path(options.figure))
        tell(f"-> {options.figure}")
    result: dict[str, Any] = {"corpus": text.name, "seq_len": length, "words": words, "gain": vars(gain)}
    result["rows"] = [{"row": row.row, "worth": vars(row.worth), "verdict": row.verdict} for row in found]
    finish(options, result | {"attention": None if mass is None else mass.to_json()})


def attention(arm: ctp.Arm, text: ctp.Split, how: dict[str, Any]) -> AttentionMass | None:
    """The attention on every row; None, with a line, if this model's cannot be watched."""
    try:
        return ctp.attention_mass(arm, text, **how)
    except InputError as error:
        note(f"without attention: {error}")
        return None


def prompt_options(sub: Parser) -> None:
    """Add the options that say whose rows are measured, and on which windows."""
    sub.add_argument("prompt", help="a folder that 'ctplab learn' made")
    sub.add_argument("--model", required=True, help="the model that it stands in front of")
    sub.add_argument("--corpus", default="atlas-web")
    loss_option(sub)
    window_options(sub)
    sub.set_defaults(windows=32)
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")


def register(commands: Any) -> None:
    """Add the command."""
    about = "what each row of a prompt is worth: the loss without it, and the attention on it"
    sub = add_command(commands, "worth", worth, about)
    prompt_options(sub)
    sub.add_argument("--rows", metavar="N,N", help="leave out these only (default: each)")
    sub.add_argument("--out", metavar="DIR", help="keep every row's scores there; run again to go on")
    sub.add_argument("--figure", metavar="FILE", help="a picture: .png, .pdf or .svg")
