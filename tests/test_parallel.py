"""Two processes do what one does; and where one is killed, the job ends with a line and goes on when run again."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import worker
from conftest import tiny

import ctplab as ctp
from ctplab.cli import main
from ctplab.formats.checkpoint import MANIFEST, read_manifest, read_tensors

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TOLD = "another process of this job ended; run the same command again to go on"


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """One thread a process, as the single process of these tests has: the same products in the same order."""
    clean = {name: v for name, v in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(Path(ctp.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    same = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return clean | same | more


def launch(*command: str, **more: str) -> subprocess.CompletedProcess:
    call = [*LAUNCH, "--main_process_port", free_port(), *command]
    with tempfile.TemporaryDirectory() as logs:  # the launcher leaves a folder of logs for every run
        env = environment(TMPDIR=logs, **more)
        return subprocess.run(call, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = [f"{a} {b} is a word pair." for a in ("red", "blue", "green") for b in ("river", "plant", "city", "metal")]
    for name in ("train", "validation", "test"):
        (folder / f"{name}.txt").write_text("\n\n".join(words * 20))
    for name in ("long", "other"):
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} {word}" for word in words * 80))
    return folder


def learning(folder, out):
    text = "file:" + ",".join(str(folder / f"{name}.txt") for name in ("train", "validation", "test"))
    recipe = ["--tokens", "6", "--steps", "10", "--batch", "5", "--lr", "0.05", "--seq-len", "40"]
    return ["learn", str(folder / "model"), "--corpus", text, *recipe, "--out", str(folder / out), "--json"]


def tuning(folder, out):
    command = learning(folder, out)
    recipe = command[command.index("--steps") :]
    return ["tune", str(folder / "compressing-alone"), *command[2:4], "--what", "scales,norms", *recipe]


def scoring(folder, out):
    text = f"file:{folder / 'long.txt'},file:{folder / 'other.txt'}"
    arm = ["--control", "random", "--tokens", "4", "--seq-len", "24", "--batch", "4", "--windows", "14"]
    return ["score", str(folder / "model"), "--corpus", text, *arm, "--out", str(folder / out), "--json"]


def compressing(folder, out):
    text = ["--calibration", f"file:{folder / 'long.txt'}", "--samples", "10", "--seq-len", "32", "--batch", "4"]
    spec = ["--bits", "3", "--sparsity", "0.5"]
    return ["compress", str(folder / "model"), *spec, *text, "--out", str(folder / out), "--json"]


def sequential(folder, out):
    return [*compressing(folder, out), "--true-sequential"]


def curve(folder, out):
    """(losses, validations) of a learned prompt."""
    return losses(json.loads((folder / out / "prompt.json").read_text())["curve"])


def losses(steps):
    return [s["loss"] for s in steps], [s["validation"] for s in steps if s["validation"]]


def close(a, b):
    """Curves: the same fp32 sums in another order, through ten AdamW steps."""
    return all(x == pytest.approx(y, rel=1e-4) for x, y in zip(a, b, strict=True))


def tensors(folder, out):
    return {p.name: read_tensors(p) for p in sorted((folder / out).glob("*.safetensors"))}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[f].keys() == b[f].keys() and all(torch.equal(a[f][t], b[f][t]) for t in a[f]) for f in a
    )


@pytest.fixture(scope="module")
def alone(folder):
    """What a single process gives: everything below is compared with it."""
    for command in (learning, scoring, compressing, sequential):
        assert main(command(folder, f"{command.__name__}-alone")) == 0
    return folder


def kept(folder, out):
    """Window sums of every corpus that was scored."""
    return {p.name: json.loads(p.read_text())["result"] for p in (folder / out).glob("*.json")}


def test_two_processes_learn_what_one_learns_and_one_of_them_prints(alone):
    done = launch("-m", "ctplab", *learning(alone, "learning-two"))
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    (result,) = map(json.loads, printed)
    assert result["processes"] == 2 and result["steps"] == 10  # steps, not steps times processes
    assert close(curve(alone, "learning-two"), curve(alone, "learning-alone"))


@pytest.mark.slow
def test_two_processes_tune_what_one_tunes(alone):
    assert main(tuning(alone, "tuning-alone")) == 0
    done = launch("-m", "ctplab", *tuning(alone, "tuning-two"))
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert result["processes"] == 2 and result["steps"] == 10
    one, two = (read_manifest(alone / f"tuning-{n}") for n in ("alone", "two"))
    assert close(*(losses(each["tuned"]["curve"]) for each in (one, two)))
    assert one["bytes"] == two["bytes"]


def test_two_processes_score_and_compress_to_the_same_bits(alone):
    """Every batch is computed as one process computes it; fp64 sums of their fp32 numbers do not feel the order."""
    commands = [each(alone, f"{each.__name__}-two") for each in (scoring, compressing, sequential)]
    done = launch(worker.__file__, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [sorted(result)[0] for result in printed] == ["arm", *["bits_per_weight"] * 2]
    assert kept(alone, "scoring-two") == kept(alone, "scoring-alone")
    for each in ("compressing", "sequential"):
        assert same(tensors(alone, f"{each}-two"), tensors(alone, f"{each}-alone"))
    assert not same(tensors(alone, "sequential-two"), tensors(alone, "compressing-two"))


def test_experts_that_only_one_process_sees_at_work(tmp_path):
    done = launch(worker.__file__, json.dumps([["experts", str(tmp_path)]]))
    assert done.returncode == 0, done.stderr[-2000:]
    worker.experts(str(tmp_path))
    weights = [read_tensors(tmp_path / f"{name}.safetensors") for name in ("0", "1", "one")]
    assert same({"": weights[0]}, {"": weights[2]}) and same({"": weights[1]}, {"": weights[2]})
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "one")]
    assert reports[0] == reports[1] == reports[2]


def killed(command, at: int) -> str:
    """Run two processes without a launcher; the second dies at a sum. Returns what the first says."""
    port, number = free_port(), {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, worker.__file__, json.dumps([command])],
            env=environment(RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port, DIES_AT=str(at), **number),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in "01"
    ]
    _, said = both[0].communicate(timeout=300)
    both[1].communicate(timeout=300)
    assert [p.returncode for p in both] == [130, -9], said
    lines = [line for line in said.splitlines() if line.strip() and "%|" not in line]  # bars apart
    assert len(lines) == 1, said
    return lines[0]


def test_learning_goes_on_after_a_killed_process(alone):
    command = learning(alone, "learning-killed")
    assert killed(command, at=8) == f"ctplab: {TOLD}"
    assert (alone / "learning-killed" / "state.safetensors").exists()
    assert main(command) == 0
    assert close(curve(alone, "learning-killed"), curve(alone, "learning-alone"))


def test_scoring_goes_on_after_a_killed_process(alone):
    command = scoring(alone, "scoring-killed")
    assert killed(command, at=2) == f"ctplab: {TOLD}"
    (first,) = (alone / "scoring-killed").glob("*.json")
    written = first.stat().st_mtime_ns
    assert main(command) == 0
    assert first.stat().st_mtime_ns == written, "the first corpus was scored again"
    assert kept(alone, "scoring-killed") == kept(alone, "scoring-alone")


def test_compressing_goes_on_after_a_killed_process_and_the_launcher_ends(alone):
    command = compressing(alone, "compressing-killed")
    done = launch(worker.__file__, json.dumps([command]), DIES_AT="6")  # in the second block
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("ctplab:")]
    assert len(told) == 1 and told[0].endswith("run the same command again to go on"), done.stderr[-2000:]
    first = alone / "compressing-killed" / "block-00000.safetensors"
    written = first.stat().st_mtime_ns
    assert not (first.parent / MANIFEST).exists()
    assert main(command) == 0
    assert first.stat().st_mtime_ns == written, "the finished block was made again"
    assert same(tensors(alone, "compressing-killed"), tensors(alone, "compressing-alone"))


def test_a_launcher_that_starts_one_process_is_told(alone, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert main(["info", str(alone / "model")]) == 0
    assert "--multi_gpu" in capsys.readouterr().err


def test_too_few_batches_and_commands_of_one_process_are_refused(alone, monkeypatch, capsys):
    from ctplab import parallel

    monkeypatch.setattr(parallel, "size", lambda: 4)
    monkeypatch.setattr(parallel, "is_main", lambda: True)
    monkeypatch.setattr(parallel, "wait", lambda: None)
    assert main(compressing(alone, "refused")) == 2
    assert "10 calibration windows in batches of 4 are 3 batches, too few for 4" in capsys.readouterr().err
    assert main(["info", str(alone / "model")]) == 2
    assert "runs in one process" in capsys.readouterr().err
