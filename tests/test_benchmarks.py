"""The GPU benchmark as a program: each section on tiny shapes on the CPU, and one line on a machine without a card."""

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
