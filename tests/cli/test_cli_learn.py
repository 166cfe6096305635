"""``ctplab learn``: its options reach the library, and it refuses impossible settings in one line."""

import json

import pytest
from commands import refused, run, run_json
from conftest import tiny

import ctplab as ctp
from ctplab.cli import main, parser
from ctplab.cli.learn import recipe
from ctplab.models.fingerprints import copy_fingerprint


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A model, the same model hurt, and a little text."""
    root = tmp_path_factory.mktemp("learn")
    for name, factor in (("model", 1.0), ("other", 0.5)):
        model = tiny("llama")
        model.model.layers[1].mlp.down_proj.weight.mul_(factor)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    words = [f"{a} {b} is a word pair." for a in ("red", "blue", "green") for b in ("river", "plant", "city", "metal")]
    for name in ("train", "validation", "test"):
        (root / f"{name}.txt").write_text("\n\n".join(words * 10))
    return root


def learn(folder, *options):
    """Exit code of ``learn`` on the folder's text."""
    corpus = "file:" + ",".join(str(folder / f"{name}.txt") for name in ("train", "validation", "test"))
    models = () if options[0].startswith("/") else (str(folder / "model"),)
    return main(["learn", *models, *options, "--corpus", corpus, "--device", "cpu", "--json"])


SHORT = ("--tokens", "4", "--steps", "6", "--batch", "4", "--seq-len", "40")


def test_two_models_a_cached_teacher_and_a_warm_start(folder, capsys):
    models = (str(folder / "model"), str(folder / "other"))
    cached = ("--objective", "nll,kl", "--teacher", models[0], "--teacher-cache", str(folder / "cache"))
    options = (*SHORT, *cached, "--teacher-top", "8", "--init", "frequent", "--accumulate", "2", "--patience", "50")
    assert learn(folder, *models, *options, "--out", str(folder / "a")) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    saved = ctp.load_prompt(folder / "a").info
    assert saved["tag"] == "full" and saved["spec"]["kl"] == 0.5 and saved["spec"]["accumulate"] == 2
    assert len(list((folder / "cache").iterdir())) == 1
    assert learn(folder, *SHORT, "--tokens", "6", "--init-prompt", str(folder / "a"), "--out", str(folder / "b")) == 0
    first, second = ctp.load_prompt(folder / "a"), ctp.load_prompt(folder / "b")
    assert second.initial.rows[:4].equal(first.prefix.rows) and second.initial.rows[4:].equal(first.prefix.rows[:2])


def test_a_prompt_for_several_copies_of_a_level(folder, capsys):
    """The copies differ, take turns, and are named in the prompt's file; the second run makes none again."""
    text = f"file:{folder / 'train.txt'}"
    compress = ("compress", folder / "model", "--bits", "3", "--calibration", text, "--samples", "6", "--seq-len", "40")
    assert main([*map(str, compress), "--out", str(folder / "w3")]) == 0
    options = (*SHORT, "--recompress", "2", "--calibration", text, "--samples", "6", "--out", str(folder / "both"))
    assert learn(folder, str(folder / "w3"), *options) == 0
    copies = [folder / "w3", *(folder / "both" / "copies" / str(i) for i in range(2))]
    found = [copy_fingerprint(ctp.load(copy, device="cpu")[0]) for copy in copies]
    saved = ctp.load_prompt(folder / "both")
    assert len(set(found)) == 3 and saved.info["copies"] == found and saved.info["tag"] == "w3"
    made = [(copy / "block-00000.safetensors").stat().st_mtime_ns for copy in copies]
    assert learn(folder, str(folder / "w3"), *options) == 0
    assert [(copy / "block-00000.safetensors").stat().st_mtime_ns for copy in copies] == made
    again = ctp.load_prompt(folder / "both")
    assert again.prefix.rows.equal(saved.prefix.rows)
    capsys.readouterr()
    assert learn(folder, *options) == 2
    assert "--recompress makes more copies of a compressed model" in capsys.readouterr().err


def test_copies_that_differ_in_one_thing_and_a_prompt_on_them(folder, capsys):
    """The first copy is home; every cell has its share of the gap and its distance from home."""
    text = f"file:{folder / 'train.txt'}"
    many = ("compress", folder / "model", "--bits", "2", "--samples", "4", "--seq-len", "40", "--calibration", text)
    made = run_json(capsys, *many, "--vary", "seed", "damp=0.1", "--out", folder / "copies")["copies"]
    changed = [("same", {}), ("seed", {"seed": 1}), ("damp-0.1", {"damp": 0.1})]
    assert [(copy["name"], copy["changed"]) for copy in made] == changed
    folders = [copy["out"] for copy in made]
    assert learn(folder, folders[0], *SHORT, "--out", str(folder / "home")) == 0
    capsys.readouterr()
    command = ("transfer", "--prompts", folder / "home", "--targets", *folders, "--corpora", text, "--seq-len", "40")
    command += ("--full", folder / "model", "--sources", folders[0], "--windows", "2")
    cells = [cell for cell in run_json(capsys, *command)["cells"] if cell["source"] == "home"]
    assert [cell["diagonal"] for cell in cells] == [True, False, False]
    assert [cell["distance"]["in_errors"] > 0 for cell in cells] == [False, True, True]
    assert all({"value", "low", "high"} == set(cell["recovery"]) for cell in cells)
    code, out, _ = run(capsys, *command)
    assert code == 0 and "weights apart by" in out and "0.00 errors, alike 1.00" in out
    _, _, told = run(capsys, *command[:-3], folders[1], *command[-2:])
    assert "home was learned on none of --sources" in told
    assert "nothing that copies can differ in" in refused(capsys, *many, "--vary", "luck", "--out", folder / "x")


def test_noise_and_copies_drawn_as_learning_goes(folder, capsys):
    """The file counts the copies that were not kept, and so does the warning."""
    text = f"file:{folder / 'train.txt'}"
    options = ("--samples", "6", "--calibration", text)
    compress = ("compress", str(folder / "model"), "--bits", "3", *options, "--seq-len", "40")
    assert main([*compress, "--out", str(folder / "w3n")]) == 0
    drawn = (*SHORT, *options, "--redraw", "2", "--noise", "0.5", "--teacher", str(folder / "model"))
    assert learn(folder, str(folder / "w3n"), *drawn, "--out", str(folder / "drawn")) == 0
    saved = ctp.load_prompt(folder / "drawn")
    assert saved.info["drawn"] == 2 and len(saved.info["copies"]) == 1 and saved.info["spec"]["noise"] == 0.5
    model, tokenizer = ctp.load(folder / "model", device="cpu")
    (note,) = ctp.attach(saved, model, tokenizer)
    assert "through 3 other compressions" in note
    capsys.readouterr()
    assert learn(folder, *SHORT, "--redraw", "2", "--out", str(folder / "y")) == 2
    assert "--redraw makes more copies of a compressed model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--preset", "paper"), "100 prompt tokens + 1024 text tokens = 1124 positions, but the model takes 256"),
        (("--accumulate", "99"), "a batch of 16 has no 99 pieces"),
        (("--kl-weight", "2"), "kl must be in [0, 1]"),
        (("--init", "frequent", "--init-text", "x"), "give one of --init"),
        (("--teacher-cache", "x"), "--teacher-cache needs --teacher"),
        (("--noise", "1"), "it needs --teacher MODEL"),
        (("--noise", "-1", "--teacher", "x"), "noise must not be negative"),
        (("--patience", "0"), "--patience: must be at least 1"),
        (("--init-prompt", "nowhere"), "no finished prompt"),
    ],
)
def test_refusals(folder, capsys, options, message):
    assert learn(folder, *options, "--out", str(folder / "x")) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_the_preset_is_a_start_that_options_change(folder):
    arguments = ["learn", "atlas", "--preset", "paper", "--steps", "7", "--seed", "0", "--out", "x"]
    spec = recipe(parser().parse_args(arguments))
    assert spec == ctp.PromptSpec(100, 7, 4, 1e-3, 500, 1e-5, evaluate_every=100)
