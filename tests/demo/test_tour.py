"""The tour end to end: on a tiny instruct model in seconds, and on SmolLM2 at a reduced size ('make test-slow')."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import refused
from conftest import tiny

import ctplab as ctp
from ctplab.demo import shipped, tour
from ctplab.demo.asked import QUESTIONS, side_by_side
from ctplab.formats import prompt_file
from ctplab.measure.transfer import TransferCell
from ctplab.models.known import MODELS
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.show import tour as show

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
ROOT = Path(__file__).parents[2]
LEARNED, OTHER = (f"file:{ROOT / name}" for name in ("docs/method.md", "docs/limits.md"))
FIGURES = ("levels", "curve", "recovery", "long-run", "questions", "transfer", "cosines")


@pytest.fixture
def small(monkeypatch, tmp_path, tokenizer):
    """A size for the tour on a random model of width 32, which has shipped prompts of its own."""
    model = tiny("llama")
    folder, ready = tmp_path / "instruct", tmp_path / "shipped"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for seed, spec in enumerate((tour.SHOWCASE, tour.OTHER)):
        rows = prefix.random_rows(model, 8, seed).rows
        info = {"base": str(folder), "tag": spec.tag, **prompt_file.made_for(model, tokenizer)}
        prompt_file.write(ctp.Prefix("soft", rows), None, info, ready / spec.tag)
    (ready / "long-run.json").write_text((shipped.folder() / "long-run.json").read_text())
    monkeypatch.setattr(shipped, "folder", lambda: ready)
    monkeypatch.setattr(tour, "NAME", str(folder))
    monkeypatch.setattr(tour, "CORPORA", (LEARNED, OTHER))
    monkeypatch.setattr(tour, "TRANSFERRED", (OTHER,))
    monkeypatch.setenv("CTPLAB_DATA", str(tmp_path))
    return tour.Size(48, 8, 4, 2, replace(tour.CORES.prompt, tokens=8, steps=4, evaluate_every=2), 0.1)


def test_the_tour_writes_its_report_and_resumes(small, tmp_path):
    said = []
    first = tour.run_tour(tmp_path / "runs", size=small, device="cpu", say=said.append, progress=silent)
    (report,) = (tmp_path / "runs").glob("*/report/report.md")
    assert json.loads((report.parent / "demo.json").read_text()) == json.loads(json.dumps(first))
    for name in FIGURES:
        assert (report.parent / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"{name}.png" in report.read_text()
    arms = {"full", "compressed", "hard", "soft", "bos", "random", "init", "full+soft", "shipped", "from-nothing"}
    arms.add("scales+norms")
    assert set(first["perplexity"][OTHER]) == arms
    assert set(first["levels"]) == {"full", "w3", "w4-s50"} and first["learned_on"] == LEARNED
    assert set(first["fidelity"]) == {LEARNED} and set(first["fidelity"][LEARNED]) == set(tour.HELD) - {"full"}
    assert first["fidelity"][LEARNED]["soft"]["n_tokens"] == small.compared * (small.seq_len - 1)
    assert len(first["answers"]) == len(QUESTIONS) == 15
    cells = [TransferCell.from_json(cell) for cell in first["cells"]]
    assert [cell.to_json() for cell in cells] == first["cells"] and len(cells) == 2 * 4
    assert set(first["transfer"]) == {"w3", "w4-s50"}
    assert first["transfer"]["w3"][OTHER]["soft"] == first["perplexity"][OTHER]["soft"]
    assert [(cell.source, cell.target) for cell in cells if cell.diagonal] == [("w3 learned here", "w3")]
    shipped_ppl = first["perplexity"][OTHER]["shipped"]
    assert next(c.ppl for c in cells if c.source == "w3 shipped") == pytest.approx(shipped_ppl, abs=1e-3)  # rounded
    assert "ctplab learn" in said[-1]

    again = tour.run_tour(tmp_path / "runs", size=small, device="cpu", say=said.append, progress=silent)
    timed = ("seconds", "cpu_seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in first.items() if k not in timed}
    (folder,) = (tmp_path / "runs").glob("*/w3/prompts/tour")
    start = ctp.load_prompt(folder).initial
    assert start is not None and torch.equal(start.rows, shipped.prompt("w3").prefix.rows)
    assert not torch.equal(start.rows, ctp.load_prompt(folder).prefix.rows)


def test_other_models_are_told_what_works(capsys):
    assert "demo runs on atlas and smollm2; for any other model there are" in refused(capsys, "demo", "--model", "gpt2")


def test_answers_are_judged_as_everywhere():
    given = {"full": ["It lies in North Africa."], "soft": ["It lies in South America."]}
    egypt = [question for question in QUESTIONS if "Egypt" in question.text]
    (row,) = side_by_side(egypt, given)
    assert row["arms"]["full"]["right"] and not row["arms"]["soft"]["right"]


def test_a_curve_is_told_in_a_line_that_ends_with_its_end():
    curve = [{"step": i, "validation": 6 - i / 1000 if (i + 1) % 50 == 0 else None} for i in range(1500)]
    told = show.curve_line(curve)
    assert told.endswith("1500: 4.501") and len(told.split("  ")) <= show.MOST + 4
    assert show.curve_line(curve[:100]) == "50: 5.951  100: 5.901"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_a_card_gets_the_long_run(small, monkeypatch, tmp_path):
    monkeypatch.setattr(tour, "CARD", small)
    found = tour.run_tour(tmp_path / "runs", device="cuda", say=lambda text: None, progress=silent)
    assert len(found["prompt"]["curve"]) == small.prompt.steps and found["dtype"] == "bfloat16"


def test_the_long_runs_table_has_what_was_measured():
    text = show.long_run_table(shipped.long_run())
    line = next(line for line in text.splitlines() if "3 bits" in line and "wikitext2" in line)
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [
        "25.1", "207.3", "67.3", "53%", "68.8", "52%", "100%",
    ]  # fmt: skip
    assert len(text.splitlines()) == 2 + 4 * 3


@pytest.mark.slow
def test_the_tour_of_smollm2_at_a_reduced_size(monkeypatch, tmp_path):
    """Few tokens and steps, as is: the shipped prompts fit the model, and even so little beats every control."""
    ctp.get_model("smollm2")
    assert MODELS["smollm2"].folder.is_dir()
    monkeypatch.delenv("CTPLAB_DATA", raising=False)
    recipe = replace(tour.CORES.prompt, steps=4, evaluate_every=2, validation_windows=2)
    found = tour.run_tour(tmp_path, size=tour.Size(128, 16, 4, 2, recipe, 0.1), device="cpu", progress=silent)
    shares = {arm: row["value"] for arm, row in found["recovery"]["docs"].items()}
    assert shares["soft"] > max(shares[arm] for arm in ("hard", "bos", "random", "init"))
    assert shares["soft"] > shares["from-nothing"]
    assert shares["scales+norms"] > shares["from-nothing"]
    assert found["questions"]["full"]["exact_match"] > 0.6
