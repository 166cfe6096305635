"""The demo end to end, shortened; and that a second run resumes."""

import json
from dataclasses import replace

import pytest

from ctplab.atlas.questions import questions
from ctplab.demo import embedded as demo
from ctplab.progress import silent
from ctplab.specs import CompressionSpec


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(demo, "LEVELS", (CompressionSpec(bits=3), CompressionSpec(bits=4, sparsity=0.5)))
    monkeypatch.setattr(demo, "SHOWCASE", "w4-s50")
    monkeypatch.setattr(demo, "CORPORA", ("atlas-web", "atlas-news"))
    monkeypatch.setattr(demo, "CALIBRATED_ON", demo.LEARNED_ON)  # docs: harvested in its own test
    monkeypatch.setattr(demo, "WINDOWS", 6)
    monkeypatch.setattr(demo, "PROMPT", replace(demo.PROMPT, tokens=8, steps=12, batch=4, evaluate_every=4))
    monkeypatch.setattr(demo, "questions", lambda: questions()[:40])


def test_the_demo_writes_its_report_and_resumes(short, tmp_path):
    said = []
    first = demo.run_demo(tmp_path, device="cpu", say=said.append, progress=silent)
    folder = tmp_path / "atlas" / "report"
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(first))
    for name in ("levels", "curve", "recovery", "questions", "cosines"):
        assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"{name}.png" in (folder / "report.md").read_text()
    assert set(first["levels"]) == {"full", "w3", "w4-s50"} and first["showcase"] == "w4-s50"
    assert set(first["questions"]) == {"full", "compressed", "hard", "soft", "bos", "random", "init", "full+soft"}
    assert first["questions"]["full"]["seen"]["n"] == first["questions"]["full"]["held_out"]["n"] == 20
    assert first["dtype"] == "float32"  # on a CPU
    assert set(first["fidelity"]) == {"atlas-web", "atlas-news"} and first["flips"]["soft"]["n"] == 40
    assert "## Fidelity to the full model" in (folder / "report.md").read_text()
    assert len(first["answers"]) == 10 and "ctplab compare" in said[-1]
    assert first["levels"]["w4-s50"]["bytes"] < first["levels"]["full"]["bytes"]

    again = demo.run_demo(tmp_path, device="cpu", say=said.append, progress=silent)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}


def test_the_papers_three_questions_come_first():
    assert [q.fact.name for q in demo.ten_questions()[:3]] == ["Long Beach", "Tulsa", "asparagus"]
