"""Arms that are compared share a dtype, and the JSON of every measuring command says which."""

import pytest
import torch
from commands import refused, run, run_json
from conftest import tiny

import ctplab as ctp
from ctplab.demo import embedded
from ctplab.formats.prompt_file import made_for, write
from ctplab.paper import bench, others
from ctplab.prompts.prefix import Prefix, random_rows


@pytest.fixture
def folder(tokenizer, tmp_path, quiet):
    """A model, a compressed one, and a prompt."""
    model = tiny("llama")
    model.save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    small, report = ctp.compress(model, torch.arange(64).view(4, 16), ctp.CompressionSpec(bits=4), **quiet)
    ctp.save(small, tmp_path / "small", tokenizer, report, str(tmp_path / "full"))
    start = random_rows(model, 4)
    info = made_for(model, tokenizer) | {"base": str(tmp_path / "full"), "tag": "w4"}
    write(Prefix("soft", start.rows.clone(), start.ids), start, info, tmp_path / "prompt")
    return tmp_path


def commands(folder) -> dict[str, tuple]:
    few = ("--seq-len", "24", "--windows", "2")
    pair = ("--full", folder / "full", "--compressed", folder / "small", "--prompt", folder / "prompt")
    return {
        "score": (folder / "small", *few),
        "recover": (*pair, "--skip", "full+own,lora", "--seq-len", "80", "--windows", "2", "--out", folder / "runs"),
        "compare": (*pair, "--max-new-tokens", "2", "one text", "another"),
        "lens": (*pair, "some words"),
        "transfer": ("--prompts", folder / "prompt", "--targets", folder / "full", folder / "small",
                     "--corpora", "atlas-web", *few),
        "latency": (folder / "small", "--tokens", "0,2", "--length", "4", "--new-tokens", "2", "--repeats", "1",
                    "--weights", "dense,packed"),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("command", ["score", "recover", "compare", "lens", "transfer", "latency"])
def test_the_result_says_its_dtype(capsys, folder, command, dtype):
    arguments = (command, *commands(folder)[command])
    chosen = ("--dtype", dtype) if dtype != "float32" else ()  # float32 is what a CPU gets
    found = run_json(capsys, *arguments, "--device", "cpu", *chosen)
    rows = found if isinstance(found, list) else [found]
    assert {row["dtype"] for row in rows} == {dtype}


@pytest.mark.parametrize("command", ["recover", "compare", "lens", "transfer"])
def test_arms_of_two_dtypes_are_not_compared(capsys, folder, command, monkeypatch):
    real = ctp.load

    def load(name, **settings):
        return real(name, **{**settings, "dtype": "bfloat16" if "small" in str(name) else "float32"})

    monkeypatch.setattr(ctp, "load", load)
    capsys.readouterr()
    said = refused(capsys, command, *commands(folder)[command])
    assert "bfloat16 and float32: load both in one, for example --dtype bfloat16" in said


@pytest.mark.parametrize(
    "command, module", [(("demo",), embedded), (("reproduce", "table1"), bench), (("reproduce", "figure5"), others)]
)
def test_whole_pipelines_load_in_the_dtype_that_is_asked_for(capsys, tmp_path, monkeypatch, command, module):
    def load(name, **settings):
        raise ctp.InputError(f"asked for {settings['dtype']} on {settings['device']}")

    monkeypatch.setattr(module, "load", load)
    for dtype in ("bfloat16", "float32"):
        code, _, err = run(capsys, *command, "--out", tmp_path, "--device", "cpu", "--dtype", dtype)
        assert code == 2 and f"asked for {dtype} on cpu" in err
