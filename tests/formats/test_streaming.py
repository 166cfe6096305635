"""Block by block from disk: the same bytes as in memory, resumable, and never more than one block in memory."""

import dataclasses
import threading

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, SHARED, from_config, tiny

import ctplab as ctp
from ctplab import tensor_files
from ctplab.formats import checkpoint, streaming
from ctplab.formats.aside import Aside
from ctplab.models.anatomy import blocks

SPEC = ctp.CompressionSpec(bits=4, sparsity=0.5)


@pytest.fixture
def windows(web):
    return web.train.sample(8, seed=0)


def files(folder):
    """Tensors of every file: metadata holds the run's key, which the way through memory does not have."""
    return {p.name: checkpoint.read_tensors(p) for p in sorted(folder.glob("*.safetensors"))}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[f].keys() == b[f].keys() and all(torch.equal(a[f][t], b[f][t]) for t in a[f]) for f in a
    )


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "neox", "gpt2", "MixtralConfig", "Gemma2Config"])
def test_streamed_equals_in_memory(family, windows, tokenizer, tmp_path, quiet):
    known = MORE_FAMILIES.get(family)
    model = from_config(getattr(transformers, family)(**known)) if known else tiny(family)
    model.save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    small, report = ctp.compress(model, windows, SPEC, **quiet)
    ctp.save(small, tmp_path / "memory", tokenizer, report, "tiny")
    manifest = ctp.compress_to(tmp_path / "full", tmp_path / "stream", tokenizer, windows, SPEC, device="cpu", **quiet)
    assert same(files(tmp_path / "memory"), files(tmp_path / "stream"))
    assert manifest["untouched"] == list(report.untouched)
    loaded, _ = ctp.load(tmp_path / "stream", device="cpu")
    assert torch.equal(loaded(windows[:2]).logits, small(windows[:2]).logits)


def test_reading_ahead_and_writing_behind_give_the_same_bytes(windows, tokenizer, tmp_path, quiet, monkeypatch):
    """As on a card, but on the CPU."""
    tiny("llama").save_pretrained(tmp_path / "full")
    for out, aside in (("turns", False), ("aside", True)):
        monkeypatch.setattr(streaming, "overlaps", lambda device, aside=aside: aside)
        monkeypatch.setattr("ctplab.formats.aside.overlaps", lambda device, aside=aside: aside)
        ctp.compress_to(tmp_path / "full", tmp_path / out, tokenizer, windows, SPEC, device="cpu", **quiet)
    assert same(files(tmp_path / "turns"), files(tmp_path / "aside"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_block", full)
    with pytest.raises(OSError, match="No space left"):
        ctp.compress_to(tmp_path / "full", tmp_path / "full disk", tokenizer, windows, SPEC, device="cpu", **quiet)


@pytest.mark.parametrize("true_sequential", [False, True])
def test_a_killed_run_resumes_at_its_block(true_sequential, windows, tokenizer, tmp_path, quiet, monkeypatch):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "full")
    spec = dataclasses.replace(SPEC, true_sequential=true_sequential)
    run = lambda out: ctp.compress_to(tmp_path / "full", tmp_path / out, tokenizer, windows, spec, **quiet)  # noqa: E731
    run("whole")
    written = []
    real = checkpoint.write_block

    def killed(path, *args):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(path, *args)

    monkeypatch.setattr(streaming.checkpoint, "write_block", killed)
    with pytest.raises(KeyboardInterrupt):
        run("again")
    with pytest.raises(ctp.InputError, match="did not finish"):
        ctp.load(tmp_path / "again")
    first = written[0].stat().st_mtime_ns
    monkeypatch.setattr(streaming.checkpoint, "write_block", real)
    run("again")
    assert written[0].stat().st_mtime_ns == first, "the finished block was made again"
    assert all(
        (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        for name in files(tmp_path / "whole")
    )


def test_blocks_leave_memory(windows, tokenizer, tmp_path, quiet, monkeypatch):
    """While block 1 is solved, block 0 holds no weights, and block 1 none while block 0 is."""
    tiny("llama").save_pretrained(tmp_path / "full")
    seen = []
    real = streaming.walk

    def spy(model, *args, **kwargs):
        for index, done in real(model, *args, **kwargs):
            seen.append([next(b.parameters()).device.type for _, b in blocks(model)])
            yield index, done

    monkeypatch.setattr(streaming, "walk", spy)
    ctp.compress_to(tmp_path / "full", tmp_path / "out", tokenizer, windows, SPEC, device="cpu", **quiet)
    assert seen == [["cpu", "meta"], ["meta", "cpu"]]


def test_a_compressed_model_is_not_compressed_again(windows, tokenizer, tmp_path, quiet):
    tiny("llama").save_pretrained(tmp_path / "full")
    ctp.compress_to(tmp_path / "full", tmp_path / "out", tokenizer, windows, SPEC, **quiet)
    with pytest.raises(ctp.InputError, match="compressed already"):
        ctp.compress_to(tmp_path / "out", tmp_path / "twice", tokenizer, windows, SPEC, **quiet)


def test_the_last_block_is_written_although_no_thread_has_begun_it():
    """On a card its thread may still be waking up when the work ends."""
    written, free = [], threading.Event()
    with Aside("cuda") as aside:
        assert aside._threads is not None
        for _ in range(2):
            aside._threads.submit(free.wait)  # both threads are busy
        aside.write(written.append, "the last block")
        threading.Timer(0.1, free.set).start()
    assert written == ["the last block"]


def test_a_full_disk_is_one_line(windows, tokenizer, tmp_path, quiet, monkeypatch):
    tiny("llama").save_pretrained(tmp_path / "full")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(ctp.InputError, match="No space left"):
        ctp.compress_to(tmp_path / "full", tmp_path / "out", tokenizer, windows, SPEC, **quiet)
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_real_model(tmp_path, quiet):
    folder = SHARED / "models" / "tinystories-656k"
    if not folder.exists():
        pytest.skip("no shared/models/tinystories-656k beside the checkout")
    tokenizer = ctp.load_tokenizer(folder)
    text = ctp.corpus("atlas-web", tokenizer, 64)
    ctp.compress_to(folder, tmp_path / "m", tokenizer, text.train.sample(16), SPEC, device="cpu", **quiet)
    model, _ = ctp.load(tmp_path / "m", device="cpu")
    assert torch.isfinite(model(text.test.windows[:1]).logits).all()
