"""Grids of studies on this machine: the plan, each cell once, resuming, failures, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab import disk
from ctplab.cli import main
from ctplab.runs.study import Study
from ctplab.sweep import log
from ctplab.sweep.cells import Settings, cells
from ctplab.sweep.grid import read
from ctplab.sweep.plan import make_plan
from ctplab.sweep.steps import run_cell

ARMS = ("full", "compressed", "soft")
SWEEP = """
models = ["{model}"]
corpora = ["{text}"]
seeds = [0, 1]
seq_len = 24
windows = 6
specs = [{{ bits = 4 }}, {{ bits = 3 }}]
calibration = {{ samples = 6 }}

[prompts.p4]
tokens = 4
steps = 4
batch = 2
lr = 0.05
"""


def write_inputs(root, tokenizer):
    """A tiny model, a text and a sweep of both."""
    tiny("llama").save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    words = [f"{a} {b} is a word pair." for a in ("red", "blue", "green") for b in ("river", "plant", "city", "metal")]
    (root / "words.txt").write_text("\n\n".join(words * 20))
    file = root / "grid.toml"
    file.write_text(SWEEP.format(model=root / "model", text=f"file:{root / 'words.txt'}"))
    return file


@pytest.fixture
def file(tokenizer, tmp_path):
    return write_inputs(tmp_path, tokenizer)


def sweep(capsys, file, *options):
    """(exit code, the JSON on standard output if any, the last line of standard error)."""
    code = main(["sweep", str(file), "--out", str(file.parent / "runs"), "--device", "cpu", "--json", *options])
    out, err = capsys.readouterr()
    assert out.count("\n") <= 1 and "Traceback" not in err
    return code, json.loads(out) if out else None, err.split("\r")[-1]


def computed(file):
    """Names of the cells that were computed, in the order of the log."""
    return [line["cell"] for line in log.read(file.parent / "runs") if line["computed"]]


def change(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_every_cell_stands_once_and_behind_what_it_needs(file):
    grid = read(file)
    wide = replace(grid, models=("a", "b"), corpora=("x", "y", "z"), score=("x", "w"))
    for each in (grid, wide):
        every = list(cells(each))
        learned = len(each.prompts) * len(each.corpora) * len(each.seeds)
        level = 1 + learned + (1 + learned) * len(each.score)  # compress, learn, score compressed and soft
        assert len(every) == len(each.models) * (len(each.score) + len(each.specs) * level)
        assert len({cell.name for cell in every}) == len(every)
        for index, cell in enumerate(every):
            assert cell.needs is None or cell.needs in every[:index]


def test_a_sweep_does_each_cell_once_and_measures_what_the_library_measures(file, capsys):
    code, dry, _ = sweep(capsys, file, "--dry-run")
    assert code == 0 and not (file.parent / "runs").exists()
    assert {step: row["cells"] for step, row in dry["plan"].items()} == {"compress": 2, "learn": 4, "score": 7}
    assert dry["plan"]["learn"]["tokens"] == 4 * 4 * 2 * 24 and dry["plan"]["learn"]["seconds"] is None

    code, found, _ = sweep(capsys, file)
    assert code == 0 and found["failed"] == {} and {cell["state"] for cell in found["cells"]} == {"ran"}
    assert sorted(computed(file)) == sorted(cell["cell"] for cell in found["cells"])
    assert json.loads((file.parent / "runs" / "sweeps" / "grid.json").read_text())["rows"] == found["rows"]

    row = next(row for row in found["rows"] if row["tag"] == "w3" and row["seed"] == 1)
    [folder] = [path.parent for path in (file.parent / "runs").glob("*/w3/compression.json")]
    [prompt] = [ctp.load_prompt(path.parent) for path in folder.glob("prompts/*-s1/prompt.json")]
    full, tokenizer = ctp.load(file.parent / "model", device="cpu")
    small, _ = ctp.load(folder, device="cpu")
    test = ctp.corpus(f"file:{file.parent / 'words.txt'}", tokenizer, 24).test
    for arm in ctp.arms(full=full, compressed=small, soft=prompt.prefix):
        assert row[arm.name] == pytest.approx(ctp.perplexity(arm, test, limit=6).ppl, rel=1e-5)  # fp32 sums

    code, again, _ = sweep(capsys, file)
    assert code == 0 and again["rows"] == found["rows"] and {cell["state"] for cell in again["cells"]} == {"done"}
    assert len(computed(file)) == len(found["cells"]) and again["plan"]["learn"]["tokens"] == 0


def test_changed_settings_run_what_depends_on_them_again_and_time_is_estimated(file, capsys):
    assert sweep(capsys, file)[0] == 0
    before = len(computed(file))
    change(file, "steps = 4", "steps = 6")
    dry = sweep(capsys, file, "--dry-run")[1]["plan"]
    assert [dry[step]["done"] for step in ("compress", "learn", "score")] == [2, 0, 3]
    assert dry["learn"]["tokens"] == 4 * 6 * 2 * 24 and dry["learn"]["seconds"] > 0
    assert main(["sweep", str(file), "--out", str(file.parent / "runs"), "--dry-run"]) == 0
    assert "4 take the place of results of other settings" in capsys.readouterr().out
    code, found, _ = sweep(capsys, file)
    again = computed(file)[before:]
    assert code == 0 and sorted(again) == sorted(c["cell"] for c in found["cells"] if c["state"] == "ran")
    assert len(again) == 8 and not any(name.startswith("compress") for name in again)

    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)  # other weights, the same shapes, embeddings and size
    model.save_pretrained(file.parent / "model")
    before = len(computed(file))
    code, other, _ = sweep(capsys, file)
    assert code == 0 and {row["done"] for row in other["plan"].values()} == {0}
    assert len(computed(file)) == before + len(other["cells"])
    assert all(row[arm] != was[arm] for row, was in zip(other["rows"], found["rows"], strict=True) for arm in ARMS)


def test_a_failed_cell_does_not_stop_the_rest(file, capsys):
    change(file, "{ bits = 3 }", "{ bits = 3, group_size = 24 }")
    code, found, err = sweep(capsys, file)
    assert code == 2 and err == "ctplab: 6 of 13 cells failed; the same command tries them again\n"
    first, *others = found["failed"].values()
    assert "group size 24 does not divide its 32 columns" in first and "\n" not in first
    assert len(others) == 5 and all(line.startswith("left out: it needs '") for line in others)
    assert len(computed(file)) == 7 and all(row["soft"] is None for row in found["rows"] if row["tag"] == "w3-g24")
    assert sum(row["soft"] is not None for row in found["rows"]) == 2
    assert sweep(capsys, file)[0] == 2 and len(computed(file)) == 7  # what was done is not done again


def test_on_a_full_disk_no_cell_computes_for_nothing(file, capsys, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    code, found, err = sweep(capsys, file)
    assert code == 2 and "Traceback" not in err and computed(file) == []
    told = set(found["failed"].values())
    assert any("this needs 1.0 MB, and 0.0 MB are free" in line for line in told)
    assert all("are free" in line or "left out" in line for line in told)


def test_an_interrupted_sweep_goes_on(file, capsys, monkeypatch):
    learn, calls = Study.prompt, []

    def interrupted(self, tag, name, *rest):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learn(self, tag, name, *rest)

    monkeypatch.setattr(Study, "prompt", interrupted)
    code, out, err = sweep(capsys, file)
    assert code == 130 and out is None and "run the same command to go on" in err
    part = json.loads((file.parent / "runs" / "sweeps" / "grid.json").read_text())
    assert [row["soft"] is not None for row in part["rows"]] == [True, False, False, False]
    code, found, _ = sweep(capsys, file)
    assert code == 0 and sorted(computed(file)) == sorted(cell["cell"] for cell in found["cells"])


def test_two_sweeps_do_not_write_to_one_folder(file, capsys):
    with log.alone(file.parent / "runs"):
        code, out, err = sweep(capsys, file)
    assert code == 2 and out is None and "another sweep is writing" in err and computed(file) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seeds = [0, 1]", "seeds = [0, 1", "is no TOML"),
        ("seeds", "seed", "unknown setting 'seed' in the sweep; known are models, specs"),
        ("corpora", "corpus", "unknown setting 'corpus'"),
        ("seq_len = 24", "", "seq_len is missing"),
        ("seq_len = 24", "seq_len = 400", "the model takes 256"),
        ("seq_len = 24", "seq_len = 254", "prompts.p4 on"),
        ("windows = 6", "windows = 0", "windows must be a whole number from 1 to"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds names 1 twice"),
        ("seeds = [0, 1]", "seeds = [0.5]", "seeds must be a list of whole numbers"),
        ("bits = 3", "bits = 5", "specs: bits must be 2, 3, 4 or 8, not 5"),
        ("bits = 3", "bit = 3", "unknown setting 'bit' in specs"),
        ("bits = 3", 'bits = "3"', "specs: bits must be of type"),
        ("{ bits = 3 }", "{ bits = 4, damp = 0.1 }", "two specs have the tag 'w4'"),
        ("tokens = 4", "tokens = true", "prompts.p4: tokens must be of type int, not True"),
        ("steps = 4", "steps = 0", "prompts.p4: steps must be at least 1"),
        ("steps = 4", "seed = 4", "prompts.p4: a prompt's seed comes from the sweep's seeds"),
        ("steps = 4", 'init = "prompt"', "no earlier prompt"),
        ("samples = 6", "sample = 6", "unknown setting 'sample' in calibration"),
        ("words.txt", "none.txt", "none.txt"),
        ("file:", "file-", "unknown corpus"),
        ("/model", "/nothing", "no model folder"),
        ("windows = 6", 'score = ["c5"]', "unknown corpus 'c5'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_computed(file, capsys, old, new, message):
    change(file, old, new)
    code, out, err = sweep(capsys, file)
    assert code == 2 and out is None and message in err and err.count("\n") == 1
    assert computed(file) == []


def test_a_compressed_model_is_no_start(file, capsys):
    assert sweep(capsys, file)[0] == 0
    [folder] = [path.parent for path in (file.parent / "runs").glob("*/w3/compression.json")]
    change(file, str(file.parent / "model"), str(folder))
    assert "a sweep starts from full models" in sweep(capsys, file)[2]


def test_a_machine_with_other_text_is_found_out(file):
    grid = read(file)
    settings = Settings(file.parent / "runs", grid.seq_len, grid.windows, grid.calibration, "cpu")
    job = make_plan("grid", grid, settings).jobs[0]
    other = replace(job, texts=dict.fromkeys(job.texts, "another fingerprint"))
    assert "holds other text on this machine" in str(run_cell(other).error) and run_cell(job).error is None


def test_the_example_is_a_valid_grid():
    grid = read(Path(__file__).parents[2] / "docs" / "sweep.toml")
    assert grid.models == ("atlas",) and len(list(cells(grid))) == 32


def test_conversations_are_counted_as_asked(file, capsys):
    """The assistant's tokens by default; all if the file or the option says so. A calibration text needs no answers."""
    chats = file.parent / "chats.jsonl"
    rows = [{"prompt": f"Where is city {i}? ", "completion": f"At river {i}."} for i in range(200)]
    chats.write_text("\n".join(map(json.dumps, rows)))
    text = f"file:{file.parent / 'words.txt'}"
    start, _, _ = SWEEP.partition("[prompts")
    file.write_text(
        start.format(model=file.parent / "model", text=f"file:{chats}").replace(
            "{ samples = 6 }", f'{{ samples = 6, corpus = "{text}" }}'
        )
    )

    def targets(*options):
        assert sweep(capsys, file, *options)[0] == 0
        [kept] = (file.parent / "runs").glob("*/w3/scores/*.json")
        return ctp.WindowScores.from_json(json.loads(kept.read_text())["result"]).score.n_tokens

    answers = targets()
    assert 0 < answers < 6 * 23 == targets("--loss", "all")
    change(file, "seq_len", 'loss = "all"\nseq_len')
    assert targets() == 6 * 23 and targets("--loss", "answers") == answers
    change(file, '"all"', '"some"')
    assert "loss must be one of answers, all, not 'some'" in sweep(capsys, file)[2]
