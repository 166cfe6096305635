"""Two processes under ``accelerate launch`` learn what one process learns on the same global batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import tiny

from ctplab.cli import main

RECIPE = ["--tokens", "6", "--steps", "10", "--batch", "5", "--lr", "0.05", "--seq-len", "40", "--device", "cpu"]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def folder(tokenizer, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [f"{a} {b} is a word pair." for a in ("red", "blue", "green") for b in ("river", "plant", "city", "metal")]
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(words * 20))
    return tmp_path


def command(folder, out):
    corpus = "file:" + ",".join(str(folder / f"{name}.txt") for name in ("train", "validation", "test"))
    return ["learn", str(folder / "model"), "--corpus", corpus, *RECIPE, "--out", str(folder / out), "--json"]


def test_two_processes_give_the_single_process_curve(folder, capsys):
    assert main(command(folder, "one")) == 0
    capsys.readouterr()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", free_port(), "-m", "ctplab", *command(folder, "two")]
    environment = {name: v for name, v in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1 and json.loads(printed[0])["steps"] == 10  # steps, not steps times processes
    one, two = (json.loads((folder / out / "prompt.json").read_text())["curve"] for out in ("one", "two"))
    assert [s["lr"] for s in one] == [s["lr"] for s in two]
    for key in ("loss", "validation"):
        # the same fp32 sums in another order, through ten AdamW steps
        assert [s[key] for s in one if s[key]] == pytest.approx([s[key] for s in two if s[key]], rel=1e-4)
