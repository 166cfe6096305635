"""Benchmarks as programs: the GPU's, each section on tiny shapes on the CPU; and prompts on copies they never saw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.parametrize("section", ["learn", "solver", "blocks", "packed", "whole"])
def test_every_section_runs_on_tiny_shapes(section, tmp_path):
    command = [sys.executable, PROGRAM, "--tiny", "--device", "cpu", "--sections", section, "--results", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout[-500:] + done.stderr[-500:]
    (kept,) = tmp_path.glob("tiny-*.txt")
    assert kept.read_text().strip() in done.stdout


def test_without_a_card_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("no GPU here: nothing to measure")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_copies_that_a_prompt_never_saw(tmp_path):
    """All kinds of recipes, and the second run only prints."""
    few = ["--texts", "atlas-news", "--steps", "2", "--windows", "2", "--tokens", "4", "--seq-len", "48"]
    recipes = ["1", "2", "1+noise=0.5+redraw=1"]
    command = [sys.executable, PROGRAM.parent / "copies.py", *few, "--recipes", *recipes, "--out", tmp_path]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr[-500:]
    assert first.stdout == second.stdout and "1+noise=0.5+redraw=1: own" in first.stdout
    assert set(json.loads((tmp_path / "copies.json").read_text())) == set(recipes)
    assert (tmp_path / "copies.png").exists() and "learn:" not in second.stderr


@pytest.mark.slow
def test_all_stages_of_a_real_model(tmp_path):
    """On the embedded model. A second run only prints; other settings do not mix with these results."""
    places = ["--out", tmp_path / "out", "--scratch", tmp_path / "scratch"]
    command = [sys.executable, PROGRAM.parent / "real.py", "--tiny", *places]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stdout[-500:] + first.stderr[-500:]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    shown = [run.stdout.split("| arm")[1:] for run in (first, second)]
    assert len(shown[0]) == 9 and "steps in" not in second.stdout
    tables = (tmp_path / "out" / "tables.txt").read_text()
    assert all(text in tables and text in first.stdout and text in second.stdout for text in found["tables"].values())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "tables.txt", "rows.safetensors"}
    other = subprocess.run([*command[:3], "--tiny", "--prompt-lr", "1", *places], capture_output=True, text=True)
    assert other.returncode == 2 and other.stderr.endswith("another prompt_lr: choose another --out\n")


@pytest.mark.slow
def test_of_a_real_model_nothing_begins_when_the_time_is_over(tmp_path):
    command = [sys.executable, PROGRAM.parent / "real.py", "--tiny", "--minutes", "0", "--stages", "rates,controls"]
    done = subprocess.run([*command, "--out", tmp_path, "--scratch", tmp_path / "s"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("not begun, 0 minutes are over") == 2, done.stderr[-500:]
