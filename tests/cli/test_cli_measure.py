"""The measuring commands as scripts meet them, on the embedded model, its compressed copy and its prompt."""

import json

import pytest
from commands import refused, run, run_json

from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir

SMALL, PROMPT = data_dir() / SHOWCASE, data_dir() / "prompt"
FEW = ("--windows", "4", "--seq-len", "64")


def test_recover_json_and_words(capsys, tmp_path):
    command = ("recover", "--full", "atlas", "--compressed", SMALL, "--prompt", PROMPT, "--out", tmp_path, *FEW)
    assert "--skip takes full+own, lora" in refused(capsys, *command, "--skip", "soft")
    command += ("--skip", "full+own,lora")  # as long as the prompt took: learned on tiny models in test_recovery.py
    found = run_json(capsys, *command)
    rows = found["corpora"]["atlas-web"]
    arms = {"full", "compressed", "hard", "soft", "bos", "random", "init", "text", "full+soft"}
    assert set(rows) == arms and {row["n_tokens"] for row in rows.values()} == {4 * 63}
    assert {"nll", "ppl", "recovery"} <= set(rows["soft"]) and {"value", "low", "high"} == set(rows["soft"]["recovery"])
    assert "Compression costs" in found["words"]["atlas-web"][0]
    assert len(list(tmp_path.rglob("*.json"))) == len(arms)
    code, out, _ = run(capsys, *command)
    assert code == 0 and "recovery [95%]" in out and found["words"]["atlas-web"][1] in out


def test_transfer_json_marks_the_diagonal_and_is_kept(capsys, tmp_path):
    out = tmp_path / "matrix.json"
    command = ("transfer", "--prompts", PROMPT, "--targets", "atlas", SMALL, "--corpora", "atlas-web", *FEW)
    found = run_json(capsys, *command, "--out", out)
    assert json.loads(out.read_text()) == found and len(list(out.with_suffix(".cells").iterdir())) == 4
    cells = {(c["source"], c["target"]): c for c in found["cells"]}
    assert cells["prompt", SHOWCASE]["diagonal"] and not cells["prompt", "atlas"]["diagonal"]
    assert {"value", "low", "high"} == set(cells["prompt", "atlas"]["change"]) and cells["none", "atlas"]["ppl"] > 1
    assert "twice" in refused(capsys, *command[:2], PROMPT, *command[2:])


def test_transfer_across_tasks(capsys, tmp_path):
    command = ("transfer", "--prompts", PROMPT, "--targets", SMALL)
    assert "--corpora, --tasks or both" in refused(capsys, *command)
    found = run_json(capsys, *command, "--tasks", "atlas", "--limit", "8", "--out", tmp_path / "m.json")
    alone, cell = found["task_cells"]
    assert (alone["source"], cell["diagonal"], cell["n"], cell["metric"]) == ("none", True, 8, "exact_match")
    assert {"value", "low", "high"} == set(cell["share"]) and {"difference", "p"} == set(cell["against_none"])


def test_lens_json(capsys):
    common = ("lens", "--full", "atlas", "--compressed", SMALL, "--prompt", PROMPT)
    found = run_json(capsys, *common, "Q: Where is Tulsa?\\nA: Oklahoma", "--top", "3")
    assert list(found["arms"]) == ["full", "compressed", "soft"] and found["arms"]["soft"]["surprisal"][0] is None
    assert {"hurt", "helped"} <= set(found) and len(found["arms"]["full"]["alternatives"][2]) == 3
    assert "at least two tokens" in refused(capsys, *common, "")


def test_latency_json(capsys):
    common = ("latency", "atlas", "--length", "8", "--new-tokens", "2", "--repeats", "1")
    found = run_json(capsys, *common, "--tokens", "0,4")
    assert [(p["attached"], p["k"]) for p in found] == [("none", 0), ("concatenated", 4), ("compiled", 4)]
    assert found[0]["first_token_ms"]["median"] > 0
    assert "whole numbers" in refused(capsys, *common, "--tokens", "a")
    assert "not packed" in refused(capsys, *common, "--weights", "dense,packed")


def test_inspect_measures_and_the_nearest_hard_prompt(capsys):
    common = ("inspect", PROMPT, "--model", SMALL, "--top", "10")
    options = ("--metric", "l2", "--centre", "--drop-special", "--drop-unused", "--bins", "20")
    found = run_json(capsys, *common, *options, "--corpus", "atlas-web", *FEW)
    assert {"token", "l2"} == set(found["tokens"][0]["nearest"][0]) and len(found["histogram"]["edges"]) == 21
    assert isinstance(found["hard_prompt"], str) and set(found["ppl"]) == {"soft", "nearest"}


@pytest.mark.parametrize("command", ["recover", "transfer", "lens"])
def test_a_prompt_that_is_not_there_is_said_in_one_line(capsys, tmp_path, command):
    none = tmp_path / "none"
    more = {
        "recover": ("--full", "atlas", "--compressed", SMALL, "--prompt", none),
        "transfer": ("--prompts", none, "--targets", "atlas", "--corpora", "atlas-web"),
        "lens": ("--full", "atlas", "--compressed", SMALL, "--prompt", none, "some text"),
    }[command]
    assert "no finished prompt" in refused(capsys, command, *more)
