"""Every recipe on a tiny model, through the command: table, figure and JSON; a second run recomputes nothing."""

import json
import math
from dataclasses import replace

import pytest
from commands import refused, run, run_json
from conftest import tiny

import ctplab as ctp
from ctplab.paper import printed, recipes
from ctplab.paper.figures import PLACES
from ctplab.paper.perplexities import cells, measure
from ctplab.text import corpora

SMALL = ("--scale", "embedded", "--steps", "1", "--windows", "1", "--tokens", "4", "--seq-len", "24")


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    monkeypatch.setattr(corpora, "ATLAS_DOCUMENTS", {"train": 60, "validation": 12, "test": 12})


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A tiny LLaMA as a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run folder for all recipes: they share compressed models, as a user's do."""
    return tmp_path_factory.mktemp("runs")


def forbidden(*_, **__):
    raise AssertionError("what was kept is computed again")


@pytest.mark.parametrize("name", recipes.ROWS)
def test_every_recipe_runs_and_resumes(name, model, runs, capsys, monkeypatch):
    pytest.importorskip("peft", reason="the LoRA rows need PEFT (pip install 'ctplab[baselines]')")
    command = ("reproduce", name, *SMALL, "--model", model, "--tasks", "atlas", "--limit", "2", "--out", runs)
    found = run_json(capsys, *command)
    folder = runs / "reproduce" / name
    assert json.loads((folder / "result.json").read_text()) == found
    assert (folder / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert printed.FIGURES.get(name, name) in (folder / "table.md").read_text()
    if name in recipes.PERPLEXITIES:
        wanted = {(r.level, r.method, r.what, r.k) for r in recipes.PERPLEXITIES[name]}
        assert len(found["rows"]) == len(wanted)
        for row in found["rows"]:  # LoRA's too
            assert math.isfinite(row["ours"]) and row["n_tokens"] == 23
            assert (row["change"] is None) == (row["method"] == "none")
    if name == "figure5":
        return  # times are measured anew
    for place in ("walk.compress", "rows.learn", "lora.learn_lora"):
        monkeypatch.setattr(f"ctplab.runs.study.{place}", forbidden)
    monkeypatch.setattr("ctplab.measure.perplexity._summed_nll", forbidden)
    monkeypatch.setattr("ctplab.measure.tasks.evaluate.evaluate", forbidden)
    assert run_json(capsys, *command) == found


def test_rows_are_what_the_public_functions_give(model, runs, tokenizer, quiet):
    """Table 9: the paper's k scaled as the prompt is, and our numbers those of the saved prompt on the saved model."""
    spec = replace(recipes.EMBEDDED.prompt, tokens=8, steps=3, evaluate_every=3, batch=2, validation_windows=2)
    scale = replace(recipes.EMBEDDED, seq_len=32, windows=3, prompt=spec, model=str(model))
    said = []
    found = measure("table9", scale, runs / "rows", say=said.append, **quiet)
    assert [(r["k"], r["printed"]) for r in found] == [(0, 15.74), (2, 9.26), (4, 8.61), (6, 8.17), (8, 7.76)]
    assert len(said) == 4
    last = found[-1]
    assert last["ours_as_published"] == pytest.approx(last["ours"] ** (31 / 39))
    (home,) = (runs / "rows").glob("*/w3")
    small, _ = ctp.load(home, device="cpu", dtype="float32")
    saved = ctp.load_prompt(home / "prompts" / "atlas-news-k8-s0")
    windows = ctp.corpus("atlas-news", tokenizer, 32).test.windows[:3]
    assert last["ours"] == pytest.approx(ctp.perplexity(ctp.Arm("x", small, saved.prefix), windows).ppl, rel=1e-6)
    assert last["change"]["value"] == pytest.approx(math.log(last["ours"] / found[0]["ours"]), rel=1e-6)


def test_figure_4_is_a_matrix_with_its_diagonal(model, runs, quiet):
    spec = replace(recipes.EMBEDDED.prompt, tokens=4, steps=1)
    scale = replace(recipes.EMBEDDED, corpora={"C4": "atlas-web"}, seq_len=24, windows=1, prompt=spec, model=str(model))
    matrix = cells(measure("figure4", scale, runs, say=lambda _: None, **quiet))
    assert len(matrix) == 6 * 7 and {c.target for c in matrix} == set(PLACES)
    assert {(c.source, c.target) for c in matrix if c.diagonal} == {(level, level) for level in PLACES}
    assert all((c.change is None) == (c.source == "none") for c in matrix)


def test_bad_recipes_are_said_in_one_line(model, runs, capsys):
    common = ("--model", model, "--out", runs)
    assert "names them all" in refused(capsys, "reproduce", "table5", *common)
    code, _, err = run(capsys, "reproduce", "table9", *common, "--corpus", "atlas-web", *SMALL)
    assert code == 2 and "table9 is about PTB" in err
    code, out, _ = run(capsys, "reproduce", "table1", "--dry-run")
    assert code == 0 and "2 LoRA adapters" in out
    for name in recipes.ROWS:
        code, out, _ = run(capsys, "reproduce", name, "--dry-run")
        assert code == 0 and "GB of GPU memory" in out and "hours of learning" in out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # lm-eval's
def test_table_8_says_which_folder_it_needs(model, runs, capsys, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval (pip install 'ctplab[tasks]')")
    monkeypatch.delenv("CTPLAB_DATA", raising=False)
    code, _, err = run(
        capsys, "reproduce", "table8", *SMALL, "--model", model, "--out", runs, "--tasks", "european_history_2023"
    )
    assert code == 2 and "the folder tasks of CTPLAB_DATA" in err and "Traceback" not in err


def test_conversations_are_counted_as_asked(model, tmp_path, capsys):
    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"Where is city {i}? ", "completion": f"At river {i}."} for i in range(200)]
    chats.write_text("\n".join(map(json.dumps, rows)))
    command = ("reproduce", "figure2", *SMALL, "--model", model, "--corpus", f"file:{chats}", "--out", tmp_path)
    for loss, targets in ((), range(1, 23)), (("--loss", "all"), [23]):
        assert {row["n_tokens"] for row in run_json(capsys, *command, *loss)["rows"]} <= set(targets)
