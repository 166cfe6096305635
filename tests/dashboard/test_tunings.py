"""Tuned models in the tab *Results*: what their manifests, and the live records of those to come, say."""

import json

import pytest
import torch

import ctplab as ctp
from ctplab import tensor_files
from ctplab.app import tunings
from ctplab.app.bench import Bench
from ctplab.formats.checkpoint import MANIFEST

CURVE = [
    {"step": 0, "loss": 3.0, "validation": None},
    {"step": 1, "loss": 2.5, "validation": 2.0},
    {"step": 2, "loss": 2.4, "validation": 1.5},
]
SPEC = ctp.PromptSpec(steps=4, lr=0.1).to_json()


def manifest(folder, **more):
    folder.mkdir(parents=True)
    tuned = {"what": ["scales", "norms"], "spec": SPEC, "steps": 3, "best_step": 3, "corpus": "docs", "curve": CURVE}
    about = {"tag": "w4+scales+norms-123456", "bytes": 2_000_000, "tuned": {**tuned, **more}}
    (folder / MANIFEST).write_text(json.dumps(about))


@pytest.fixture
def bench(tmp_path):
    runs = tmp_path / "runs"
    manifest(runs / "w4-tuned", validation_before=3.0)
    manifest(runs / "atlas" / "w4" / "tuned" / "a", validation_baselines={"full": 1.0, "compressed": 3.0})
    carried = {"tag": "w4+scales-1a2b3c", "bytes": 2_000_000}
    carried["tuned"] = {"what": ["scales"], "from": "runs/w4", "like": "runs/w4-tuned", "tag": "w4"}
    for name, about in (("carried", carried), ("plain", {"tag": "w4", "bytes": 1}), ("odd", {"tuned": {"what": 1}})):
        (runs / "atlas" / name).mkdir(parents=True, exist_ok=True)
        (runs / "atlas" / name / MANIFEST).write_text(json.dumps(about))
    (runs / "atlas" / "damaged").mkdir()
    (runs / "atlas" / "damaged" / MANIFEST).write_text("{")
    record = {"step": 3, "best_step": 3, "before": 3.0, "curve": CURVE}
    for name, tensor in (("going", "now.scale:model.layers.0"), ("adapter", "now.A")):
        state, about = runs / "atlas" / f"{name}.state.safetensors", {"identity": {"recipe": SPEC}, "record": record}
        tensor_files.write_sealed({tensor: torch.zeros(2), "now.E": torch.zeros(2)}, about, state)
    (runs / "cut.state.safetensors").write_bytes(b"nothing")
    return Bench(runs)


def test_every_tuned_model_is_one_line(bench):
    found = tunings.found(bench)
    assert set(found) == {"w4-tuned", "atlas/w4/tuned/a", "atlas/carried", "atlas/going"}
    rows = {name: tunings.row(name, about)[1:] for name, about in found.items()}
    reached = ["0.1", "3 of 4", "3"]
    assert rows["w4-tuned"] == ["scales and norms", *reached, "3.000 → 1.500", "not measured", "2.00 MB"]
    assert rows["atlas/w4/tuned/a"] == ["scales and norms", *reached, "1.500", "75%", "2.00 MB"]
    assert rows["atlas/carried"] == ["scales", "", "", "", "", "", "2.00 MB"]
    assert rows["atlas/going"] == ["scales and prompt", *reached, "3.000 → 1.500", "not measured", ""]


def test_a_model_is_told_and_drawn(bench):
    found = tunings.found(bench)
    assert "learned on docs, 3 steps of 4 at a rate of 0.1" in tunings.told("x", found["w4-tuned"])
    assert "the same command goes on" in tunings.told("x", found["atlas/going"])
    assert "scales of `runs/w4-tuned` on `runs/w4`" in tunings.told("x", found["atlas/carried"])
    drawn = {trace.name: list(trace.y) for trace in tunings.drawn(found["w4-tuned"]).data}
    assert drawn["validation NLL"] == [2.0, 1.5] and drawn["before the first step"] == [3.0, 3.0]
    assert {trace.name for trace in tunings.drawn(found["atlas/w4/tuned/a"]).data} >= {"full model", "compressed model"}
    assert not tunings.drawn(found["atlas/carried"]).data
