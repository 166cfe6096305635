"""``hard``: which hard prompt helps most."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least
from ctplab.cli.shared import add_command, finish, load_model, loss_option, say, seq_len
from ctplab.disk import check_is_json, write_json
from ctplab.progress import bar
from ctplab.prompts.wordings import WORDINGS, read_candidates


def hard(options: argparse.Namespace) -> None:
    """Rank the presets, or the lines of --candidates."""
    texts = read_candidates(Path(options.candidates)) if options.candidates else list(WORDINGS.values())
    model, tokenizer = load_model(options, options.model)
    longest = max(ctp.hard_prompt(model, tokenizer, text).k for text in texts)
    length = seq_len(model, options.seq_len, longest)
    text = ctp.corpus(options.corpus, tokenizer, length, loss=options.loss).validation
    more: dict[str, Any] = {"seed": options.seed, "progress": bar}
    if options.out:
        check_is_json(Path(options.out))
        more["keep"] = ctp.kept_in(Path(options.out).with_suffix(".cells"))
    ranked = ctp.rank_hard_prompts(model, tokenizer, texts, text, limit=options.windows or None, **more)
    tell = say(options)
    tell(f"nats a token on the validation split of {options.corpus}, and the difference to no prompt [95%]")
    for candidate in ranked:
        first = candidate.text.strip().split("\n")[0]
        tell(f"{candidate.nll:8.4f}  {candidate.difference}  {candidate.k:4d} tokens  {first[:70]}")
    tell("This was a search: report the winner on a test split, with 'ctplab score --hard-prompt'.")
    count = len(text.windows[: options.windows or None])
    result: dict[str, Any] = {"corpus": options.corpus, "seq_len": length, "windows": count}
    result["candidates"] = [asdict(candidate) for candidate in ranked]
    if options.out:
        check_is_json(Path(options.out))
        write_json(result, Path(options.out))
    finish(options, result)


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "hard", hard, "rank hard prompts by validation loss")
    sub.add_argument("model")
    sub.add_argument("--candidates", metavar="FILE", help="one a line, or blank lines between (default: the presets)")
    sub.add_argument("--corpus", default="atlas-web")
    loss_option(sub)
    sub.add_argument("--seq-len", type=at_least(0), default=0)
    sub.add_argument("--windows", type=at_least(0), default=0, help="use the first N windows only")
    sub.add_argument("--out", metavar="FILE", help="write JSON here; results are kept beside it as they come")
