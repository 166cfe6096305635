"""What the commands share: their options, their output, and the models, prompts and arms that they name."""

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab import parallel
from ctplab.cli.numbers import at_least, to_json, words
from ctplab.cli.parsing import Parser
from ctplab.errors import InputError
from ctplab.formats import checkpoint
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context, context_length
from ctplab.models.fingerprints import same_base
from ctplab.models.loading import DTYPES, resolve
from ctplab.prompts.arms import ALONE, Parts, build, check_dtypes
from ctplab.prompts.wordings import wording
from ctplab.text.corpora import LOSSES, NAMES
from ctplab.text.reading import STARTS
from ctplab.text_files import read_json

# Output


def say(options: argparse.Namespace) -> Callable[[str], None]:
    """A function that prints text for people; it prints nothing with --json, which leaves standard output to JSON.

    Only the main one of several processes speaks; this holds for ``note`` and ``finish`` too.
    """
    return (lambda text: None) if options.json or not parallel.is_main() else print


def note(text: str) -> None:
    """Print what the user should know beside the result: a line on standard error."""
    if parallel.is_main():
        print(f"ctplab: {text}", file=sys.stderr)


def finish(options: argparse.Namespace, result: Any) -> None:
    """Print the result as one line of JSON if --json asks for it."""
    if options.shared:
        result = {**result, "processes": parallel.size()}
    if options.json and parallel.is_main():
        print(to_json(result))


def note_replaced(path: Path, made_from: dict[str, Any]) -> None:
    """Say before any work if the manifest at ``path`` is of a result that was not ``made_from`` this."""
    try:
        old = read_json(path, finite=False)
    except InputError:  # none, or a damaged one
        return
    if not made_from.items() <= old.items():
        note(f"{path.parent} holds {old.get('tag')} made from other settings or text: it is replaced")


# Options


def add_group(commands: Any, name: str, about: str) -> Any:
    """Add a command that has commands of its own; returns where those are added."""
    group = commands.add_parser(name, help=about, description=about)
    return group.add_subparsers(required=True, metavar="WHAT")


def add_command(
    commands: Any,
    name: str,
    run: Callable,
    about: str,
    *,
    shared: bool = False,
    dtype: str = "float32 on a CPU, bfloat16 on a GPU",
) -> Parser:
    """Add the command ``name``, which calls ``run``, with the options that all commands have.

    ``shared``: several processes (``accelerate launch``) share its work. ``dtype``: what the help calls the default.
    """
    sub: Parser = commands.add_parser(name, help=about, description=about)
    sub.set_defaults(run=run, shared=shared, parser=sub)
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    sub.add_argument("--seed", type=at_least(0), default=0)
    sub.add_argument("--device", help="cpu, cuda, cuda:1, auto: all GPUs (default: a GPU if there is one)")
    sub.add_argument("--dtype", choices=DTYPES, help=f"default: {dtype}")
    return sub


def arm_options(sub: Parser) -> None:
    """Add the options that choose an arm; :func:`chosen_arm` reads them."""
    sub.add_argument("--prompt", metavar="DIR", help="a learned prompt")
    sub.add_argument("--hard-prompt", type=words, metavar="TEXT", help="words, or a preset: paper, pruned, quantized")
    sub.add_argument(
        "--control", choices=ALONE, help="random with --prompt: as many rows, but not those that it started from"
    )
    sub.add_argument("--tokens", type=at_least(1), help="rows of the random control (100, or those of --prompt)")
    sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")


def window_options(sub: Parser, default_length: int = 0) -> None:
    """Add the options that say which windows are scored, and how many at a time."""
    text = "tokens a window" + ("" if default_length else " (default: 1024, or what fits behind the prompt)")
    sub.add_argument("--seq-len", type=at_least(0), default=default_length, help=text)
    sub.add_argument("--windows", type=at_least(0), default=0, help="score the first N windows only")
    sub.add_argument("--batch", type=at_least(1), default=16, help="windows a forward pass")


class _Corpora(argparse.Action):
    """Gathers the corpora of an option that is repeated. The first one given takes the place of the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, ([] if before is self.default else before) + split_corpora(values))


def corpora_option(
    sub: Parser, flag: str, default: Collection[str] = (), about: str = "names, separated by commas"
) -> None:
    """Add an option that takes several corpora; its value is a list of names."""
    more = f" (default: {','.join(default)})" if default else ""
    sub.add_argument(
        flag, action=_Corpora, default=list(default),
        help=f"{about}; repeatable. file:PATH is a text file, or .jsonl rows with text, content, messages, or "
        "prompt and completion (file:PATH#FIELD chooses one); file:TRAIN,VALIDATION,TEST gives the splits: what "
        "follows file: are its paths, up to the name of a known corpus or the next file: (write ./docs for a path that "
        f"is called like a corpus){more}",
    )  # fmt: skip


def split_corpora(text: str) -> list[str]:
    """``docs,file:A,B,C,c4`` as the names of three corpora.

    The parts behind ``file:`` are its paths, up to the name of a known corpus or the next ``file:``.
    """
    found: list[str] = []
    for part in filter(None, text.split(",")):
        begins = part in NAMES or part.startswith("file:")
        if found and found[-1].startswith("file:") and not begins:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def raw_options(sub: Parser) -> None:
    """Add the options of a text that becomes a user's turn if the tokenizer has a chat template."""
    sub.add_argument("--raw", action="store_true", help="no chat template: the text is continued as it stands")
    sub.add_argument("--show-text", action="store_true", help="show what the model reads, template included")


def start_option(sub: Parser) -> None:
    """Add the option that says what stands between an arm's prefix and a text; one choice for all arms."""
    sub.add_argument(
        "--start", choices=STARTS, default="auto",
        help="the start token in front of a text, behind any prompt: token, none, or auto: as the tokenizer does",
    )  # fmt: skip


def loss_option(sub: Parser) -> None:
    """Add the option that says which tokens of a text are counted as targets."""
    sub.add_argument(
        "--loss", choices=LOSSES,
        help="answers: the assistant's tokens only (default for files of conversations); all: every token",
    )  # fmt: skip


# Models, prompts and arms


def load_model(options: argparse.Namespace, name: str, packed: bool = False) -> tuple[Model, Tokenizer]:
    """The model called ``name`` and its tokenizer, on the chosen device and in the chosen dtype."""
    return ctp.load(name, device=options.device, dtype=options.dtype, packed=packed)


def check_words(name: str, its_own: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raise InputError if the full model called ``name`` reads texts as other tokens than ``tokenizer`` does."""
    theirs, ours = its_own.get_vocab().items(), tokenizer.get_vocab().items()
    if not (theirs <= ours or ours <= theirs):  # a few words more are no other reading
        raise InputError(f"{name} has another tokenizer than the compressed model: it is not its full model")


def load_full(options: argparse.Namespace, name: str, small: Model, tokenizer: Tokenizer) -> Model:
    """The full model called ``name``, to compare ``small`` with. A note says if it looks like another model's.

    Raises InputError if it is in another dtype, or reads texts as other tokens.
    """
    full, its_own = load_model(options, name)
    check_words(name, its_own, tokenizer)
    check_dtypes([small, full])
    if not same_base(full, small):
        note(f"{name} has other embeddings than the compressed model: is it its full model?")
    return full


def seq_len(model: Model, wanted: int, k: int = 0) -> int:
    """Tokens a window: ``wanted``, or 1024 or what the model takes behind ``k`` rows. Raises InputError if none fit.

    ``k``: of the longest prefix that the windows are read behind.
    """
    check_context(model, k, wanted or 2)
    limit = context_length(model)
    return wanted or min(1024, (limit or 1024 + k) - k)


def manifest_of(model: str) -> dict[str, Any]:
    """What the folder of a compressed model says about it; empty for any other model."""
    folder = Path(resolve(model))
    return checkpoint.read_manifest(folder) if (folder / checkpoint.MANIFEST).exists() else {}


def attach(options: argparse.Namespace, name: str, saved: ctp.SavedPrompt, model: Model, tokenizer: Tokenizer) -> None:
    """Check that a prompt fits the model called ``name``, and tell what the user should know."""
    for found in ctp.attach(saved, model, tokenizer, tag=manifest_of(name).get("tag", "full"), force=options.force):
        note(found)


def chosen_arm(options: argparse.Namespace, model: Model, tokenizer: Tokenizer) -> ctp.Arm:
    """The arm that --prompt, --hard-prompt or --control asks for, else the model alone.

    With --prompt the random control has as many rows as the prompt, and not those that the prompt started from.
    """
    given = [name for name in ("prompt", "hard_prompt", "control") if getattr(options, name) is not None]
    if len(given) > 1 and (given != ["prompt", "control"] or options.control != "random"):
        raise InputError("give one of --prompt, --hard-prompt and --control; --control random takes a --prompt beside")
    saved = None if options.prompt is None else ctp.load_prompt(options.prompt)
    if saved is not None:
        attach(options, options.model, saved, model, tokenizer)
    parts = Parts(
        full=model,
        compressed=model,
        tokenizer=tokenizer,
        hard=None if options.hard_prompt is None else wording(options.hard_prompt),
        soft=saved.prefix if saved else None,
        initial=saved.initial if saved else None,
        k=options.tokens or (None if saved else 100),
        seed=options.seed,
    )
    alone = "compressed" if manifest_of(options.model) else "full"
    return build(options.control or ("soft" if saved else "hard" if parts.hard is not None else alone), parts)


def compared_arms(options: argparse.Namespace) -> tuple[list[ctp.Arm], Tokenizer, str]:
    """(arms, tokenizer, dtype) that --full, --compressed, --prompt and --hard-prompt ask for.

    Raises InputError as :func:`load_full`.
    """
    small, tokenizer = load_model(options, options.compressed)
    full, soft = load_full(options, options.full, small, tokenizer), None
    if options.prompt is not None:
        saved = ctp.load_prompt(options.prompt)
        attach(options, options.compressed, saved, small, tokenizer)
        soft = saved.prefix
    hard = None if options.hard_prompt is None else wording(options.hard_prompt)
    return ctp.arms(full, small, hard, soft, tokenizer=tokenizer), tokenizer, check_dtypes([full])
