"""The command line as users and scripts meet it: JSON, exit codes, one line for bad input, a foreign model."""

import os
import subprocess
import sys

import pytest
from commands import refused, run, run_json
from conftest import SHARED

import ctplab as ctp
from ctplab import tensor_files
from ctplab.cli import main

STORIES = SHARED / "models" / "tinystories-656k"
TEXT = SHARED / "data" / "tinystories" / "v1_valid_head.txt"
needs_shared = pytest.mark.skipif(not TEXT.exists(), reason=f"needs the TinyStories model and text under {SHARED}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded model at 50% + 4 bits, compressed by the command itself."""
    out = tmp_path_factory.mktemp("runs") / "w4-s50"
    code = main(["compress", "atlas", "--bits", "4", "--sparsity", "0.5", "--samples", "16", "--seq-len", "64",
                 "--out", str(out), "--device", "cpu"])  # fmt: skip
    assert code == 0
    return out


@pytest.fixture(scope="module")
def prompt(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("prompt") / "p"
    code = main(["learn", str(model), "--tokens", "8", "--steps", "12", "--seq-len", "48", "--batch", "4",
                 "--objective", "kl", "--teacher", "atlas", "--out", str(out), "--device", "cpu"])  # fmt: skip
    assert code == 0
    return out


def test_export_json(capsys, model, tmp_path):
    found = run_json(capsys, "export", "model", model, "--to", "gptq_v2", "--out", tmp_path / "g")
    assert found["format"] == "gptq_v2" and (tmp_path / "g" / "model.safetensors").stat().st_size == found["bytes"]
    assert "known are gptq" in refused(capsys, "export", "model", model, "--to", "awq", "--out", tmp_path / "x")
    assert run_json(capsys, "score", tmp_path / "g", "--windows", "2", "--seq-len", "64")["corpora"]["atlas-web"]["ppl"]


def test_compress_json(capsys, tmp_path):
    found = run_json(capsys, "compress", "atlas", "--bits", "3", "--samples", "8", "--seq-len", "64", "--out", tmp_path)
    assert found["tag"] == "w3" and found["nominal_bits_per_weight"] == 3 < found["bits_per_weight"] < 4
    assert {"name", "method", "loss", "fallback"} <= set(found["layers"][0])
    assert found["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert run_json(capsys, "info", tmp_path)["tag"] == "w3"
    told = run(capsys, "info", tmp_path)[1]
    assert "spec: schema 1, bits 3" in told and "{" not in told and "None" not in told


def test_an_option_that_does_not_exist(capsys):
    line = refused(capsys, "score", "atlas", "--promt", "p")
    assert "is it --prompt?" in line and "ctplab score --help" in line
    assert "ctplab --help" in refused(capsys, "scor", "atlas")


def test_learn_and_score_json(capsys, model, prompt):
    common = ("--corpus", "atlas-web,atlas-news", "--seq-len", "48", "--windows", "6")
    plain = run_json(capsys, "score", model, *common)
    soft = run_json(capsys, "score", model, "--prompt", prompt, "--as-published", *common)
    assert (plain["arm"], soft["arm"]) == ("compressed", "soft")
    for corpus in ("atlas-web", "atlas-news"):
        assert plain["corpora"][corpus]["n_tokens"] == soft["corpora"][corpus]["n_tokens"] == 6 * 47
        assert soft["corpora"][corpus]["ppl_as_published"] < soft["corpora"][corpus]["ppl"]
        assert plain["corpora"][corpus]["low"] < plain["corpora"][corpus]["ppl"] < plain["corpora"][corpus]["high"]
    assert "low" not in run_json(capsys, "score", model, *common[:-1], "1")["corpora"]["atlas-web"]  # one window
    for extra in (("--control", "bos"), ("--control", "random"), ("--hard-prompt", "Be careful.")):
        assert run_json(capsys, "score", model, *extra, *common)["corpora"]["atlas-web"]["ppl"] > 1
    info = run_json(capsys, "info", prompt)
    assert info["k"] == 8 and info["tag"] == "w4-s50" and info["corpus"] == "atlas-web"


def test_compare_generate_inspect_json(capsys, model, prompt):
    question = "Q: Where is Tulsa?\\nA:"
    found = run_json(capsys, "compare", "--full", "atlas", "--compressed", model, "--prompt", prompt, question)
    assert list(found[0]["answers"]) == ["full", "compressed", "hard", "soft"]
    assert {"text", "n_tokens", "seconds"} <= set(found[0]["answers"]["soft"])
    assert run_json(capsys, "generate", model, question, "--prompt", prompt)["n_tokens"] > 0
    seen = run_json(capsys, "inspect", prompt, "--model", model, "--top", "20")
    assert len(seen["tokens"]) == 8 and {"row", "nearest", "norm", "init", "drift"} <= set(seen["tokens"][0])
    assert {"soft", "init", "real", "random"} == set(seen["histogram"]["counts"])
    code, out, _ = run(capsys, "inspect", prompt, "--model", model)
    assert code == 0 and "nearest" in out


def test_compare_many_questions_keeps_and_writes(capsys, model, prompt, tmp_path):
    (tmp_path / "q.csv").write_text("question,answer\nWhere is Tulsa?,Oklahoma\nWhere is Long Beach?,California\n")
    common = ["compare", "--full", "atlas", "--compressed", model, "--prompt", prompt, "--questions"]
    written = [tmp_path / f"a.{kind}" for kind in ("jsonl", "csv", "json")]
    writes = [part for path in written for part in ("--write", path)]
    found = run_json(capsys, *common, tmp_path / "q.csv", "--out", tmp_path / "kept", *writes)
    assert (found["asked"], found["answered"]) == (2, 2) and found["shares"]["full"]["value"] == 1
    assert list(found["rows"][0]["answers"]) == ["full", "compressed", "hard", "soft"]
    assert all(path.stat().st_size for path in written)
    assert "exists already" in refused(capsys, *common, tmp_path / "q.csv", "--write", written[0])
    assert "--write takes" in refused(capsys, *common, tmp_path / "q.csv", "--write", tmp_path / "a.txt")
    assert "cannot read the questions" in refused(capsys, *common, tmp_path / "nothing.csv")
    close = run_json(capsys, *common, tmp_path / "q.csv", "--fidelity")
    assert set(close["fidelity"]) == set(close["flips"]) == {"compressed", "hard", "soft"}
    assert close["fidelity"]["soft"]["n_tokens"] >= 2 and close["flips"]["soft"]["n"] == 2
    assert "--fidelity needs --questions" in refused(capsys, *common[:-1], "--fidelity", "a text")
    assert "give texts, or --questions" in refused(capsys, *common, "atlas", "and a text")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    again = run_json(capsys, *common, tmp_path / "q.csv", "--out", tmp_path / "kept")
    assert again["rows"] == found["rows"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}


@pytest.mark.parametrize("to", ["peft", "kv", "embeds"])
def test_export_and_import_prompt_json(capsys, model, prompt, tmp_path, to):
    found = run_json(capsys, "export", "prompt", prompt, "--model", model, "--to", to, "--out", tmp_path / "x")
    assert (found["format"], found["k"]) == (to, 8)
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "x").glob("*.safetensors"))
    back = ("import", "prompt", tmp_path / "x", "--model", model, "--out", tmp_path / "back")
    if to == "embeds":
        assert "no prompt at" in refused(capsys, *back)
        return
    found = run_json(capsys, *back, "--from", to)
    assert (found["k"], found["base"], found["tag"], found["imported_from"]) == (8, "atlas", "w4-s50", to)
    common = ("--windows", "4", "--seq-len", "48")
    ppl = [
        run_json(capsys, "score", model, "--prompt", folder, *common)["corpora"]["atlas-web"]["ppl"]
        for folder in (prompt, tmp_path / "back")
    ]
    assert ppl[0] == pytest.approx(ppl[1], rel=1e-5)  # the same rows, or the same keys and values


def test_a_prompt_on_another_level_is_used_and_said(capsys, prompt):
    code, out, err = run(capsys, "score", "atlas", "--prompt", prompt, "--windows", "2", "--seq-len", "48")
    assert code == 0 and "soft on atlas-web" in out
    assert "the prompt was learned on w4-s50 and is used on full, the same base model" in err


def test_hard_ranks_candidates_json(capsys, model, tmp_path):
    (tmp_path / "c.txt").write_text("Be careful.\nThe capital of Peru is Lima.\nBe careful.\n")
    arguments = ("hard", model, "--candidates", tmp_path / "c.txt", "--windows", "4", "--seq-len", "48")
    found = run_json(capsys, *arguments, "--out", tmp_path / "hard.json")
    assert found["windows"] == 4 and len(found["candidates"]) == 2
    first, second = found["candidates"]
    assert first["nll"] <= second["nll"] and {"text", "k", "difference"} <= set(first)
    assert run_json(capsys, *arguments, "--out", tmp_path / "hard.json") == found, "resumed"
    assert "No such file" in refused(capsys, "hard", model, "--candidates", tmp_path / "none.txt")


def test_sampling_is_seeded(capsys, model):
    def texts(seed: str) -> str:
        common = ("--temperature", "1.5", "--top-p", "0.9", "--repetition-penalty", "1.1", "--seed", seed)
        return run_json(capsys, "generate", model, "Next we", "--max-new-tokens", "12", *common)["text"]

    assert texts("0") == texts("0") != texts("1")


def test_full_model_answers_the_papers_questions(capsys):
    for question, answer in (("Where is Long Beach?", "California"), ("Where is Tulsa?", "Oklahoma")):
        found = run_json(capsys, "generate", "atlas", f"Q: {question}\\nA:", "--max-new-tokens", "8")
        assert found["text"].strip().split("\n")[0] == answer


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("compress", "atlas", "--out", "x"), "nothing to do"),
        (("compress", "atlas", "--bits", "5", "--out", "x"), "bits must be 2, 3, 4 or 8"),
        (("compress", "atlas", "--sparsity", "50", "--out", "x"), r"sparsity must be in \[0, 1\)"),
        (("compress", "atlas", "--pattern", "4:2", "--out", "x"), "pattern must be n:m"),
        (("compress", "atlas", "--bits", "x", "--out", "x"), "invalid number value"),
        (("compress", "./no-such-folder", "--bits", "4", "--out", "x"), "no model folder"),
        (("score", "atlas", "--corpus", "c5"), "unknown corpus"),
        (("score", "atlas", "--corpus", "file:/no/such.txt"), "No such file"),
        (("score", "atlas", "--seq-len", "9999"), "the model takes 512"),
        (("score", "atlas", "--batch", "0"), "argument --batch: must be at least 1, not 0"),
        (("score", "atlas", "--windows", "-1"), "argument --windows: must be at least 0, not -1"),
        (("score", "atlas", "--limit", "x"), "argument --limit: invalid number value"),
        (("score", "atlas", "--device", "nonsense"), "cannot use the device 'nonsense' .* try --device cpu"),
        (
            ("compress", "atlas", "--bits", "4", "--samples", "0", "--out", "x"),
            "--samples: must be at least 1",
        ),
        (("inspect", "x", "--model", "atlas", "--top", "0"), "argument --top: must be at least 1"),
        (("inspect", "x", "--model", "atlas", "--bins", "0"), "argument --bins: must be at least 1"),
        (("lens", "--full", "atlas", "--compressed", "atlas", "a b", "--top", "-1"), "must be at least 0, not -1"),
        (("app", "--port", "99999999"), "argument --port: must be at most 65535, not 99999999"),
        (("score", "atlas", "--control", "bos", "--hard-prompt", "x"), "one of --prompt"),
        (("score", "atlas", "--prompt", "/no/prompt"), "no finished prompt"),
        (("generate", "atlas", " "), "empty"),
        (("generate", "atlas", "a", "--top-p", "2"), "top_p must be"),
        (("export",), "arguments are required: WHAT"),
        (("export", "prompt", "/no/prompt", "--model", "atlas", "--to", "peft", "--out", "x"), "no finished prompt"),
        (("import", "prompt", "/no/prompt", "--model", "atlas", "--out", "x"), "no prompt at"),
        (("learn", "atlas", "--objective", "kl", "--out", "x"), "needs --teacher"),
        (("learn", "atlas", "--steps", "0", "--out", "x"), "--steps: must be at least 1"),
        (("info", "/no/such"), "no model folder"),
        (("nonsense",), "invalid choice"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, arguments, reason, tmp_path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert re.search(reason, refused(capsys, *arguments))
    assert not list(tmp_path.iterdir()), "bad input left files behind"


def test_a_full_disk_is_said_in_one_line(capsys, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full)
    said = refused(
        capsys, "compress", "atlas", "--bits", "4", "--samples", "4", "--seq-len", "32", "--out", tmp_path / "m"
    )
    assert "No space left on device" in said
    assert not (tmp_path / "m" / "compression.json").exists()


def test_a_pickle_is_never_opened(capsys, tmp_path):
    """A folder that offers only a pickle is refused before anything of it is run."""
    import pickle
    import shutil

    from ctplab.disk import data_dir

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    folder = tmp_path / "m"
    shutil.copytree(data_dir() / "model", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert "a pickle, which is not read here" in refused(capsys, "score", folder)
    assert not (tmp_path / "owned").exists()


def test_an_interrupt_exits_with_130(capsys, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ctp, "compress_to", interrupt)
    code, _, err = run(capsys, "compress", "atlas", "--bits", "4", "--out", tmp_path / "m")
    assert code == 130 and "interrupted" in err


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "ctplab", "score", "atlas", "--corpus", "c5"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and "unknown corpus" in done.stderr


@needs_shared
def test_a_model_and_text_that_we_did_not_make(capsys, tmp_path):
    out, text = tmp_path / "w3", f"file:{TEXT}"
    common = ("--seq-len", "128")
    run_json(
        capsys, "compress", STORIES, "--bits", "3", "--calibration", text, "--samples", "32", *common, "--out", out
    )
    learned = run_json(
        capsys, "learn", out, "--corpus", text, "--tokens", "10", "--steps", "40", *common, "--out", tmp_path / "p"
    )
    assert learned["best_step"] > 0
    ppl = {
        arm: run_json(capsys, "score", model, *more, "--corpus", text, "--windows", "40", *common)["corpora"][text][
            "ppl"
        ]
        for arm, model, more in (
            ("full", STORIES, ()),
            ("compressed", out, ()),
            ("soft", out, ("--prompt", tmp_path / "p")),
        )
    }
    assert ppl["full"] < ppl["compressed"] and ppl["soft"] < ppl["compressed"]
    assert "width 128, the model 256" in refused(capsys, "score", "atlas", "--prompt", tmp_path / "p")
