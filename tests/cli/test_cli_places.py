"""What stands in the wrong place, or has no effect, is told in one line before any work is done."""

import json
import re
import shutil

import pytest
import torch
from commands import refused, run, run_json
from conftest import tiny
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats.checkpoint import MANIFEST, read_manifest
from ctplab.formats.tuned import fold
from ctplab.measure.stats import Interval
from ctplab.models.fingerprints import same_base

SMALL, PROMPT = data_dir() / "w4-s55", data_dir() / "prompt"
FEW = ("--windows", "2", "--seq-len", "32")


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """``stranger``: another model with the embedded tokenizer. ``words``: one with another tokenizer."""
    found = tmp_path_factory.mktemp("places")
    tiny("llama").save_pretrained(found / "stranger")
    tokenizer.save_pretrained(found / "stranger")
    tiny("llama").save_pretrained(found / "words")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "it": 3}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>")
    other.save_pretrained(found / "words")
    (found / "text.txt").write_text("It is what it is.\n\n" * 200)
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("worth", "", "--model", SMALL),
        ("worth", PROMPT, "--model", ""),
        ("recover", "--full", "", "--compressed", SMALL, "--prompt", PROMPT),
        ("recover", "--full", "atlas", "--compressed", SMALL, "--prompt", PROMPT, ""),
        ("tune", SMALL, "--like", "", "--out", "x"),
        ("compress", "atlas", "--bits", "4", "--out", ""),
        ("choose", SMALL, "--prompts", PROMPT, "--full", ""),
    ],
)
def test_an_empty_name_is_told(command, capsys):
    """As an unset variable of a shell is; else it would be the folder one stands in, or no option at all."""
    assert "is empty (see 'ctplab" in refused(capsys, *command)


@pytest.mark.parametrize(
    "option, command",
    [
        ("--temperature", ("--questions", "atlas", "--temperature", "1")),
        ("--stop", ("--questions", "atlas", "--stop", "x")),
        ("--write", ("hello", "--write", "x.csv")),
        ("--limit", ("hello", "--limit", "2")),
    ],
)
def test_an_option_without_effect_is_told(option, command, capsys):
    assert f"{option} has no effect" in refused(capsys, "compare", "--full", "atlas", "--compressed", SMALL, *command)


def test_learning_options_have_no_effect_beside_like(capsys):
    assert "--what has no effect" in refused(capsys, "tune", SMALL, "--like", "x", "--what", "norms", "--out", "y")


@pytest.mark.parametrize(
    "command",
    [
        ("recover", "--compressed", SMALL, "--prompt", PROMPT, "--full"),
        ("compare", "hello", "--compressed", SMALL, "--full"),
        ("pace", "--compressed", SMALL, "--prompts", PROMPT, "--full"),
        ("choose", SMALL, "--prompts", PROMPT, "--full"),
        ("cut", PROMPT, "--model", SMALL, "--out", "x", "--full"),
        ("score", SMALL, "--against"),
        ("learn", SMALL, "--hidden", "0.5", "--tokens", "2", "--seq-len", "32", "--out", "x", "--teacher"),
    ],
)
def test_a_full_model_with_other_words_is_refused(command, home, capsys):
    """Its losses would be of other texts: wrong numbers that nobody sees."""
    if command[0] == "learn":
        command = (*command[:-1], "--corpus", f"file:{home / 'text.txt'}", command[-1])
    assert "another tokenizer" in refused(capsys, *command, home / "words")


def test_a_full_model_with_other_embeddings_is_noted(home, capsys):
    code, _, err = run(capsys, "compare", "--full", home / "stranger", "--compressed", SMALL, "It is")
    assert code == 0 and "has other embeddings than the compressed model" in err
    code, _, err = run(capsys, "compare", "--full", "atlas", "--compressed", SMALL, "It is")
    assert code == 0 and err == ""


def test_half_precision_makes_no_other_base():
    model = tiny("llama")
    assert all(same_base(model, tiny("llama").to(kind)) for kind in (torch.bfloat16, torch.float16))
    other = tiny("llama")
    other.get_input_embeddings().weight.data[0, 0] += 0.1
    assert not same_base(model, other) and not same_base(model, ctp.load("atlas", device="cpu")[0])


def test_a_target_of_another_base_has_no_share_of_the_gap(home, capsys):
    targets = ("--targets", SMALL, home / "stranger", "--corpora", "atlas-web", *FEW)
    code, out, _ = run(capsys, "transfer", "--prompts", PROMPT, *targets, "--full", "atlas", "--sources", SMALL)
    assert code == 0 and re.search(r"stranger +\| +none", out)
    cells = run_json(capsys, "transfer", "--prompts", PROMPT, *targets, "--full", "atlas", "--force")["cells"]
    assert [cell["target"] for cell in cells if cell["recovery"]] == ["w4-s55"]


def test_a_gap_of_zero_gives_no_number(capsys, tmp_path):
    """The full model against itself: tables say so, and the file is JSON to every reader."""
    command = ("transfer", "--prompts", PROMPT, "--targets", SMALL, "--corpora", "atlas-web", *FEW, "--full", SMALL)
    code, out, _ = run(capsys, *command, "--out", tmp_path / "x.json")
    assert code == 0 and "cannot tell" in out and "nan" not in out
    assert Interval(float("nan"), 0.0, 1.0).percent == Interval(float("inf"), 0.0, 1.0).percent == "cannot tell"

    def no_constant(name: str):
        raise AssertionError(f"{name} in the file")

    json.loads((tmp_path / "x.json").read_text(), parse_constant=no_constant)


@pytest.mark.parametrize(
    "said, command",
    [
        ("give at least one --corpus", ("choose", SMALL, "--prompts", PROMPT, PROMPT, "--corpus", "")),
        ("named twice", ("recover", "--full", "atlas", "--compressed", SMALL, "--prompt", PROMPT, PROMPT)),
        ("end it in .png", ("worth", PROMPT, "--model", SMALL, "--figure", "x.jpg")),
        ("end it in .png", ("pace", "--full", "atlas", "--compressed", SMALL, "--prompts", PROMPT, "--figure", "x")),
        ("unknown corpus 'no'", ("compress", "atlas", "--bits", "4", "--vary", "seed", "text=no", "--out", "x")),
        ("samples=VALUE", ("compress", "atlas", "--bits", "4", "--vary", "samples", "--out", "x")),
        ("is no compressed model", ("tune", "atlas", "--out", "x")),
        ("is no compressed model", ("tune", "nowhere", "--like", SMALL, "--out", "x")),
        ("--what takes scales", ("tune", SMALL, "--what", "rows", "--out", "x")),
        ("leaves no room", ("learn", SMALL, "--tokens", "600", "--out", "x")),
    ],
)
def test_what_cannot_work_is_told_first(said, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *command)
    assert list(tmp_path.iterdir()) == []


def test_what_a_tuned_folder_says_is_checked(capsys, tmp_path):
    manifest = read_manifest(SMALL)
    norms = {f"norm:{name}": 2 * p for name, p in ctp.load(SMALL, device="cpu")[0].named_parameters() if p.ndim == 1}
    fold(SMALL, tmp_path / "tuned", norms, {"what": ["norms", "soft"], "from": str(SMALL)})
    recover = ("recover", "--full", "atlas", "--compressed", SMALL, "--prompt", PROMPT, *FEW)
    for tuned in ([1], {}, {"what": "norms"}, {"what": []}, {"what": [1]}, {"what": ["norms"], "from": 1}):
        shutil.copytree(tmp_path / "tuned", tmp_path / "bad", dirs_exist_ok=True)
        (tmp_path / "bad" / MANIFEST).write_text(json.dumps(read_manifest(tmp_path / "tuned") | {"tuned": tuned}))
        for command in ((*recover, "--tuned"), ("tune", SMALL, "--out", tmp_path / "x", "--like")):
            assert "compression.json is damaged" in refused(capsys, *command, tmp_path / "bad")
    code, _, err = run(capsys, "tune", SMALL, "--like", tmp_path / "tuned", "--out", tmp_path / "like")
    assert code == 0 and "its prompt stays where it is" in err
    assert read_manifest(tmp_path / "like")["tuned"]["what"] == ["norms"]
    shutil.copytree(SMALL, tmp_path / "level")
    spec = manifest["spec"] | {"sparsity": 0.5}
    changed = manifest | {"spec": spec, "tag": ctp.CompressionSpec.from_json(spec).tag}
    (tmp_path / "level" / MANIFEST).write_text(json.dumps(changed))
    code, _, err = run(capsys, "tune", tmp_path / "level", "--like", tmp_path / "tuned", "--out", tmp_path / "far")
    assert code == 0 and "learned at another level" in err


def test_what_is_replaced_is_told_first(capsys, tmp_path):
    """The same command again says nothing; other settings or another text do, and the manifest says who wrote it."""
    small, prompt = tmp_path / "small", tmp_path / "prompt"
    compress = ("compress", "atlas", "--samples", "2", "--seq-len", "32", "--out", small)
    learn = ("learn", small, "--tokens", "2", "--steps", "1", "--batch", "2", "--seq-len", "32", "--out", prompt)
    for command, other, tag in ((compress, ("--bits", "3"), "w4"), (learn, ("--seed", "1"), "w3")):
        first = (*command, "--bits", "4") if command is compress else command
        for again, words in (
            (first, None),
            (first, None),
            ((*command, *other), f"holds {tag} made from other settings or text: it is replaced"),
        ):
            code, _, err = run(capsys, *again)
            assert code == 0
            assert (words in err) if words else ("replaced" not in err)
    for folder, name in ((small, "compression.json"), (prompt, "prompt.json")):
        assert json.loads((folder / name).read_text())["versions"]["ctplab"] == ctp.__version__
