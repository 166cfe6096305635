"""The same cells on a real Ray cluster of two workers, one of which is killed in the middle."""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_sweep import change, computed, sweep, write_inputs

from ctplab.sweep import log
from ctplab.sweep.ray import LOOPBACK

os.environ |= {LOOPBACK: "0", "RAY_USAGE_STATS_ENABLED": "0"}  # read when ray is imported
ray = pytest.importorskip("ray", reason="needs ray: pip install 'ctplab[ray]'")

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "include_log_monitor": False}


@pytest.fixture
def cluster(monkeypatch):
    """The address of a cluster of two nodes with a core each, on localhost, whose logs go with it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # workers stand in another folder
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:  # a short path: sockets' names
        monkeypatch.setenv("RAY_TMPDIR", logs)
        yield from _cluster()


def _cluster():
    from ray.cluster_utils import Cluster

    for attempt in range(3):  # on a busy machine Ray's daemons give each other up after 15 s
        try:
            cluster = Cluster(initialize_head=True, head_node_args=NODE)
            cluster.add_node(**NODE)
            break
        except Exception:
            if attempt == 2:
                raise
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def file(tokenizer, tmp_path):
    file = write_inputs(tmp_path, tokenizer)
    change(file, "specs = [{ bits = 4 }, { bits = 3 }]", "specs = [{ bits = 3 }]")
    change(file, "steps = 4", "steps = 150\nevaluate_every = 10")
    return file


def kill_a_learner(runs, killed, stop):
    """Kill the first worker that is in the middle of learning: once it has saved its state."""
    while not stop.is_set() and not killed:
        time.sleep(0.02)
        if not list(runs.glob("*/w3/prompts/*/state.safetensors")):
            continue
        for process in psutil.Process().children(recursive=True):
            try:
                title = process.cmdline()[0]
            except (psutil.Error, IndexError):
                continue
            if title.startswith("ray::learn"):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return


def test_a_killed_worker_costs_no_cell_and_no_cell_is_done_twice(file, capsys, cluster):
    runs, killed, stop = file.parent / "runs", [], threading.Event()
    killer = threading.Thread(target=kill_a_learner, args=(runs, killed, stop))
    killer.start()
    try:
        code, found, err = sweep(capsys, file, "--ray", cluster)
    finally:
        stop.set()
        killer.join()
    assert code == 0, err
    assert len(killed) == 1, "no worker was killed: the learning ended too soon"
    assert {cell["state"] for cell in found["cells"]} == {"ran"} and len(found["cells"]) == 7
    assert sorted(computed(file)) == sorted(cell["cell"] for cell in found["cells"])
    pids = {line["cell"]: line["pid"] for line in log.read(runs)}
    assert os.getpid() not in pids.values() and len(set(pids.values())) > 1
    assert killed[0] not in {pid for cell, pid in pids.items() if cell.startswith("learn")}

    runs.rename(file.parent / "on-ray")
    code, local, _ = sweep(capsys, file)
    assert code == 0
    for here, there in zip(local["rows"], found["rows"], strict=True):
        # fp32 sums in another order (another number of threads) through 150 AdamW steps
        assert here["soft"] == pytest.approx(there["soft"], rel=1e-2)
        assert here["full"] == pytest.approx(there["full"], rel=1e-5)


def test_without_ray_or_without_a_cluster(file, capsys, monkeypatch):
    assert "no Ray cluster answers at 127.0.0.1:1" in sweep(capsys, file, "--ray", "127.0.0.1:1")[2]
    assert "at auto, local or host:port" in sweep(capsys, file, "--ray", "somewhere")[2]
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = sweep(capsys, file, "--ray", "auto")
    assert code == 2 and out is None and err == "ctplab: Ray is not installed: pip install 'ctplab[ray]'\n"
    assert computed(file) == []
