"""The library's errors name Python arguments, the command line's name its options."""

import ast
import inspect
import pkgutil
import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest
from commands import refused, run
from conftest import tiny

import ctplab as ctp
from ctplab.cli import parser
from ctplab.cli.shared import HINT, in_flags
from ctplab.formats.prompt_file import write
from ctplab.prompts.prefix import random_rows

ROOT = Path(__file__).parents[2]
FLAGS = {"force": "--force", "to": "--to", "dtype": "--dtype", "samples": "--samples", "seq_len": "--seq-len"}


@pytest.mark.parametrize(
    "message, wanted",
    [
        ("unknown origin; force=True uses it all the same", "unknown origin; --force uses it all the same"),
        ("the model gives NaN; try dtype='float32'", "the model gives NaN; try --dtype float32"),
        ("give more windows (samples=) or seq_len=", "give more windows (--samples) or --seq-len"),
        ("dtype='float32', to='dense' or force=True.", "--dtype float32, --to dense or --force."),
        ("use to='a folder'", "use --to 'a folder'"),
        ("give another seq_len=", "give another --seq-len"),
        ("to='gptq_v2', or compress it with symmetric=True", "--to gptq_v2, or compress it with symmetric=True"),
        ("no such file: runs/seq_len=/a", "no such file: runs/seq_len=/a"),
        ("no such file: seq_len=8/a", "no such file: seq_len=8/a"),
        ("unknown corpus 'dtype='", "unknown corpus 'dtype='"),
        ("add a node with 'ray start --to=...'", "add a node with 'ray start --to=...'"),
        ("force=False and nothing to translate", "force=False and nothing to translate"),
    ],
)  # fmt: skip
def test_arguments_become_options(message, wanted):
    assert in_flags(message, FLAGS) == wanted
    assert in_flags(message, {}) == message, "a command translates the options that it has"


def test_a_commands_options_by_their_arguments():
    def flags(*arguments: str) -> dict[str, str]:
        return parser().parse_args(arguments).parser.flags

    compress = flags("compress", "m", "--out", "x")
    assert compress["seq_len"] == "--seq-len" and compress["symmetric"] == "--symmetric" and "model" not in compress
    assert "packed" in flags("score", "m") and "packed" not in flags("compare", "--full", "a", "--compressed", "b", "x")
    assert flags("app")["port"] == "--port"
    assert "recompute" not in flags("memory"), "--no-recompute sets it to False: recompute=True is something else"


def said() -> list[tuple[str, str]]:
    """(file, text) of all that the library says: every text in an ``InputError`` and in a warning."""
    found = []
    for path in [*ROOT.glob("ctplab/**/*.py"), *ROOT.glob("app/*.py")]:
        if ROOT / "ctplab" / "cli" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("InputError", "append")):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                found += [(path.name, text) for text in texts if isinstance(text, str)]
    return found


def test_the_library_speaks_of_no_flags():
    texts = said()
    assert len(texts) > 150
    others = ("ray start --", "llama-gguf-split --")  # options of other programs
    flags = [text for text in texts if re.search(r"(?<!\w)--\w", text[1]) and not any(o in text[1] for o in others)]
    assert not flags


def test_every_hint_names_an_argument_that_exists():
    """As a parameter of a function or a field of a dataclass of the library, and as an option of the command line."""
    pytest.importorskip("gradio")  # some modules start the dashboard
    known: set[str] = set()
    for module in pkgutil.walk_packages(ctp.__path__, "ctplab."):
        if module.name.endswith("__main__") or module.name.startswith("ctplab.cli"):
            continue
        for thing in vars(import_module(module.name)).values():
            if inspect.isfunction(thing) and thing.__module__.startswith("ctplab."):
                known |= set(inspect.signature(thing).parameters)
            elif is_dataclass(thing):
                known |= {field.name for field in fields(thing)}
    named = {hint[1] for _, text in said() for hint in HINT.finditer(text)}
    assert {"force", "to", "dtype", "samples", "seq_len", "symmetric", "reference", "packed", "device", "port"} <= named
    assert named <= known, named - known


@pytest.fixture
def stranger(tmp_path):
    """A prompt that does not say where it comes from, for a tiny model."""
    rows = random_rows(tiny("llama"), 4)
    write(rows, None, {"width": 32}, tmp_path / "stranger")
    return tmp_path / "stranger"


@pytest.fixture
def model(tokenizer, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_a_user_of_the_command_line_reads(capsys, tmp_path, stranger, model):
    capsys.readouterr()
    score = ("score", model, "--prompt", stranger, "--windows", "1", "--seq-len", "16")
    assert "made for; --force uses it all the same" in refused(capsys, *score)
    assert run(capsys, *score, "--force")[0] == 0
    transfer = ("transfer", "--prompts", stranger, "--targets", model, "--corpora", "atlas-web", "--seq-len", "16")
    assert "stranger on model: " in (out := run(capsys, *transfer, "--windows", "1")[1]) and "; --force uses" in out
    few = ("compress", model, "--sparsity", "0.5", "--samples", "1", "--seq-len", "16", "--out", tmp_path / "s50")
    code, _, err = run(capsys, *few)
    assert code == 0 and "give more windows (--samples) or longer ones (--seq-len)" in err
    export = ("export", "model", tmp_path / "s50", "--to", "gptq", "--out", tmp_path / "x")
    assert "use --to dense" in refused(capsys, *export)
    assert "device 'nonsense'" in (line := refused(capsys, "score", model, "--device", "nonsense"))
    assert "try --device cpu" in line
