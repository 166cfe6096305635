"""Killed at any moment, a resumable command goes on and ends with the same bytes; two at once do no harm."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    found = tmp_path_factory.mktemp("killed")
    hostile.build(found, tokenizer)
    return found


def command(name: str, home: Path, out: Path) -> list[str]:
    corpus = ["--corpus", f"file:{home / 't.txt'}"]
    small = ["--windows", "4", "--seq-len", "32"]
    ways = {
        "compress": ["compress", home / "dense", "--bits", "4", "--calibration", f"file:{home / 't.txt'}",
                     "--samples", "16", "--seq-len", "32", "--out", out],
        "learn": ["learn", home / "small", *corpus, "--tokens", "4", "--steps", "60", "--batch", "2",
                  "--seq-len", "32", "--out", out],
        "recover": ["recover", "--full", home / "dense", "--compressed", home / "small", "--prompt", home / "prompt",
                    *corpus, *small, "--skip", "full+own,lora", "--out", out],
        "hard": ["hard", home / "dense", "--candidates", home / "candidates.txt", *corpus, *small,
                 "--out", out / "h.json"],
        "transfer": ["transfer", "--prompts", home / "prompt", "--targets", home / "small", home / "plain",
                     "--corpora", f"file:{home / 't.txt'}", *small, "--out", out / "t.json"],
        "sweep": ["sweep", home / "sweep.toml", "--out", out],
    }  # fmt: skip
    return [sys.executable, "-m", "ctplab", *map(str, ways[name])]


def start(name: str, home: Path, out: Path, **more) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(name, home, out), **quiet, **more)


def ended(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def content(out: Path) -> dict[str, object]:
    """What is in ``out``, by name: tensors as bytes; of text only that it is there, because it holds times."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in ("lock", "completed.jsonl")]
    return {
        str(path.relative_to(out)): {n: t.numpy().tobytes() for n, t in load_file(path).items()}
        if path.suffix == ".safetensors" else path.suffix for path in files
    }  # fmt: skip


@pytest.fixture(scope="module", params=["compress", "learn", "recover", "hard", "transfer", "sweep"])
def undisturbed(request, home, tmp_path_factory):
    """(name, seconds it takes, what it makes) of a command that nobody kills."""
    out, began = tmp_path_factory.mktemp("whole") / "out", time.monotonic()
    ended(start(request.param, home, out))
    return request.param, time.monotonic() - began, content(out)


@pytest.mark.parametrize(("seed", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM), (2, signal.SIGINT)])
def test_killed_at_any_moment_it_goes_on(undisturbed, seed, number, home, tmp_path):
    name, seconds, whole = undisturbed
    for moment in random.Random(seed).choices(range(20, 100), k=2):  # percent of the time
        process = start(name, home, tmp_path / "out")
        try:
            process.wait(timeout=seconds * moment / 100)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, err = process.communicate(timeout=600)
        assert process.returncode in (0, 130, -signal.SIGKILL) and b"Traceback" not in err, (moment, err)
    ended(start(name, home, tmp_path / "out"))
    assert {n: c for n, c in content(tmp_path / "out").items() if not n.endswith(".partial")} == whole


def test_two_at_once_do_no_harm(undisturbed, home, tmp_path):
    name, _, whole = undisturbed
    both = [start(name, home, tmp_path / "out") for _ in range(2)]
    codes = []
    for process in both:
        _, err = process.communicate(timeout=600)
        codes.append(process.returncode)
        assert process.returncode in (0, 2) and b"Traceback" not in err, err
    assert 0 in codes  # a sweep locks its folder: the second one is told so
    assert content(tmp_path / "out") == whole


def test_place_language_time_zone_and_hash_seed_change_nothing(undisturbed, home, tmp_path):
    name, _, whole = undisturbed
    there = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended(start(name, home, tmp_path / "out", cwd=tmp_path, env=os.environ | there))
    assert content(tmp_path / "out") == whole
