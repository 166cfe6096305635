"""A hub that is out of reach is told in seconds; what was downloaded before loads without it."""

import socket
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.cli import main
from ctplab.models import hub
from ctplab.models.loading import check_name, local_folder

NAME = "some/model-that-nobody-has"
BUSY = 10  # seconds that a busy machine may add


@pytest.fixture
def far(monkeypatch, tmp_path):
    """A hub that takes calls and never answers, and an empty cache of its files."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "_found", {})
        yield tmp_path


def test_a_hub_out_of_reach_is_told_in_seconds(far, capsys):
    began = time.monotonic()
    with pytest.raises(ctp.InputError, match="does not answer from here; give a folder"):
        ctp.load(NAME)
    assert main(["score", "modles/w4", "--corpus", "docs"]) == 2
    assert "no model folder at 'modles/w4'" in capsys.readouterr().err
    assert time.monotonic() - began < hub.PATIENCE + BUSY  # asked once


def test_nobody_asks_for_what_the_hub_cannot_have(far, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda address: pytest.fail("asked"))
    for name, why in (
        ("my model", "neither a folder"),
        ("häuser/w4", "neither a folder"),
        ("./w4", "no model folder"),
    ):
        with pytest.raises(ctp.InputError, match=why):
            check_name(name)


def test_without_the_hub_a_downloaded_model_loads(far, tokenizer):
    kept = far / "models--some--model-that-nobody-has"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abcd")
    model, folder = tiny("llama"), kept / "snapshots" / "0123abcd"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (kept / "blobs").mkdir()
    for file in list(folder.iterdir()):  # as a cache has them
        file.rename(kept / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    loaded, _ = ctp.load(NAME)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert local_folder(NAME) == folder


def test_a_hub_that_answers_is_asked_itself(far, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda address: True)
    assert check_name(NAME) == NAME


@pytest.mark.parametrize("off", ["0", "false", ""])
def test_a_hub_that_is_not_off_is_asked(far, monkeypatch, off):
    monkeypatch.setenv("HF_HUB_OFFLINE", off)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    assert check_name(NAME) == NAME


def test_nobody_is_asked_if_the_hub_is_off(far, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("asked"))
    with pytest.raises(ctp.InputError, match="does not answer from here"):
        check_name(NAME)


def test_texts_and_questions_of_the_hub_are_not_waited_for(far, tokenizer, monkeypatch):
    """Their libraries try several times, with pauses: half a minute and more."""
    pytest.importorskip("datasets")
    monkeypatch.delenv("CTPLAB_DATA", raising=False)
    began = time.monotonic()
    with pytest.raises(ctp.InputError, match="cannot get Salesforce/wikitext from the hub"):
        _ = ctp.corpus("wikitext2", tokenizer, seq_len=32).test.windows
    assert time.monotonic() - began < hub.PATIENCE + BUSY
