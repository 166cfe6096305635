"""``choose``: several prompts, one chosen for each input by its first tokens."""

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import (
    add_command,
    attach,
    corpora_option,
    finish,
    load_full,
    load_model,
    loss_option,
    say,
    seq_len,
    window_options,
)
from ctplab.disk import compute_always, kept_in, slug
from ctplab.errors import InputError
from ctplab.measure.chosen import behind, chosen, milliseconds
from ctplab.progress import bar
from ctplab.prompts.prefix import none
from ctplab.scores import WindowScores
from ctplab.show import row_tables

OWN = ("full", "none", "chosen", "best choice")
"""What the tables call arms that are no folder of the user's."""


def choose_prompts(options: argparse.Namespace) -> None:
    """Score the choice beside each prompt alone, on every corpus and on all together."""
    if not options.corpus:
        raise InputError("give at least one --corpus")
    folders = dict.fromkeys([*options.prompts, *options.beside])
    if taken := set(folders) & set(OWN):
        raise InputError(f"write ./{taken.pop()}: the table has an arm of that name")
    saved = {folder: ctp.load_prompt(folder) for folder in folders}
    model, tokenizer = load_model(options, options.model)
    for each in saved.values():
        attach(options, options.model, each, model, tokenizer)
    length = seq_len(model, options.seq_len, max(each.prefix.k for each in saved.values()))
    prompts = {folder: ctp.Arm(folder, model, each.prefix) for folder, each in saved.items()}
    several = [prompts[folder] for folder in dict.fromkeys(options.prompts)]
    beside = [ctp.Arm("none", model, none(model)), *(prompts[folder] for folder in options.beside)]
    if options.full:
        full = load_full(options, options.full, model, tokenizer)
        beside.insert(0, ctp.Arm("full", full, none(full)))
    scores: dict[str, list[WindowScores]] = {}
    result: dict[str, Any] = {"look": options.look, "seq_len": length, "corpora": {}}
    counted: Counter[str] = Counter()
    for name in options.corpus:
        text = ctp.corpus(name, tokenizer, length, loss=options.loss).test
        keep = kept_in(Path(options.out) / slug(name)) if options.out else compute_always
        how: dict[str, Any] = {"limit": options.windows or None, "batch": options.batch, "keep": keep, "progress": bar}
        found, rest = chosen(several, text, look=options.look, **how), behind(text, options.look)
        own = found.alone | {"chosen": found.scores, "best choice": found.best}
        for arm in beside:
            own[arm.name] = ctp.window_scores(arm, rest, name=f"behind-{options.look}--{arm.name}", **how)
        tell(options, result, name, own, found.counts)
        counted.update(found.counts)
        for arm, each in own.items():
            scores.setdefault(arm, []).append(each)
    if len(options.corpus) > 1:
        tell(options, result, "all", {arm: together(each) for arm, each in scores.items()}, counted)
    result["milliseconds"] = milliseconds(several, text.windows[0], options.look)
    say(options)(row_tables.times_line(result["milliseconds"], len(several), options.look, length))
    finish(options, result)


def tell(
    options: argparse.Namespace, result: dict[str, Any], name: str, scores: dict[str, WindowScores],
    counts: Mapping[str, int],
) -> None:  # fmt: skip
    """Print one corpus' table, and put it into the result."""
    rows = measured(scores, bool(options.full), options.seed)
    result["corpora"][name] = {"chosen": dict(counts), "arms": rows}
    say(options)(f"{name}: {row_tables.counts_line(counts)}")
    say(options)(row_tables.chosen_table(rows))


def together(scores: list[WindowScores]) -> WindowScores:
    """The scores of several texts as those of one."""
    return WindowScores(torch.cat([each.nll for each in scores]), torch.cat([each.n_tokens for each in scores]))


def measured(scores: dict[str, WindowScores], closed: bool, seed: int) -> dict[str, dict[str, Any]]:
    """Perplexity, the change against the choice, and if ``closed`` the share of the gap, of every arm."""
    rows = {}
    for name, own in scores.items():
        rows[name] = {"ppl": own.score.ppl, "change": asdict(ctp.change(own, scores["chosen"], seed=seed))}
        if closed:
            rows[name]["recovery"] = asdict(ctp.recovery(scores["full"], scores["none"], own, seed=seed))
    return rows


def register(commands: Any) -> None:
    """Add the command."""
    about = "several prompts, one chosen for each input by its first tokens, beside each alone"
    sub = add_command(commands, "choose", choose_prompts, about)
    sub.add_argument("model")
    sub.add_argument("--prompts", required=True, nargs="+", metavar="DIR", help="two or more to choose from")
    sub.add_argument("--beside", nargs="+", default=[], metavar="DIR", help="prompts to score too: one for all, say")
    sub.add_argument("--full", metavar="MODEL", help="the uncompressed model, for the share of the gap")
    sub.add_argument(
        "--look", type=at_least(2), default=16, metavar="N", help="tokens that choose; no arm's targets (16)"
    )
    corpora_option(sub, "--corpus", ["atlas-web", "atlas-wiki", "docs"])
    loss_option(sub)
    window_options(sub)
    sub.add_argument("--force", action="store_true", help="use prompts of unknown origin")
    sub.add_argument("--out", metavar="DIR", help="keep all scores there; run again to go on")
