"""Corpora: names, splits, joins, bad input."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SHARED

import ctplab as ctp


def test_unknown_names_list_the_known(tokenizer):
    with pytest.raises(ctp.InputError, match="unknown corpus 'atlas-wbe'; known are atlas-web"):
        ctp.corpus("atlas-wbe", tokenizer)


def test_file_corpus_is_joined_tokenised_once_and_cut(tokenizer, tmp_path):
    documents = [f"Document {i} says that Lima is the capital of Peru, and more." for i in range(40)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": d}) for d in documents))
    text = ctp.corpus(f"file:{path}", tokenizer, seq_len=16)
    ids = tokenizer("\n\n".join(documents[38:]))["input_ids"]
    expected = torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)
    assert torch.equal(text.test.windows, expected)
    plain = tmp_path / "x.txt"
    plain.write_text("\n\n".join(documents))
    assert ctp.corpus(f"file:{plain}", tokenizer, 16).test.fingerprint == text.test.fingerprint
    three = ctp.corpus(f"file:{plain},{path},{plain}", tokenizer, 16)
    assert three.test.fingerprint == three.train.fingerprint == three.validation.fingerprint


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "has no text"), (b"   \n\n ", "has no text"), (b"\xff\xfe\x00", "not UTF-8")],
)
def test_bad_text_files_get_one_line(tokenizer, tmp_path, content, reason):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ctp.InputError, match=reason):
        _ = ctp.corpus(f"file:{path}", tokenizer).test


def test_bad_jsonl_missing_files_and_short_text(tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"txt": 1}\n')
    with pytest.raises(ctp.InputError, match="'text' field"):
        ctp.corpus(f"file:{path}", tokenizer)
    with pytest.raises(ctp.InputError, match="No such file"):
        ctp.corpus(f"file:{tmp_path / 'none.txt'}", tokenizer)
    short = tmp_path / "short.txt"
    short.write_text("a few words " * 30)
    with pytest.raises(ctp.InputError, match="less than one window of 256"):
        _ = ctp.corpus(f"file:{short}", tokenizer, 256).test.windows


def test_sample_is_seeded_and_inside_the_stream(web):
    a, b = web.train.sample(5, seed=3), web.train.sample(5, seed=3)
    assert torch.equal(a, b) and a.shape == (5, 48) and not torch.equal(a, web.train.sample(5, seed=4))


def test_docs_are_harvested_here_and_cached(tokenizer, tmp_path, monkeypatch):
    from ctplab.atlas import docs

    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(docs, "PACKAGES", ())
    monkeypatch.setattr(docs, "MAX_CHARACTERS", 200_000)
    first = ctp.corpus("docs", tokenizer, 64).test
    assert len(list(tmp_path.glob("docs-*.json"))) == 1
    assert ctp.corpus("docs", tokenizer, 64).test.fingerprint == first.fingerprint
    assert len(first.windows) > 10


DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not (DATA / "ptb").exists(), reason=f"needs the published texts under {DATA}")


@pytest.fixture
def texts(monkeypatch):
    monkeypatch.setenv("CTPLAB_DATA", str(DATA))


@needs_data
def test_published_texts_are_joined_as_the_reference_evaluators_join_them(tokenizer, texts):
    def same(name, split, text, cut=None):
        ids = tokenizer(text, verbose=False)["input_ids"][:cut]
        assert torch.equal(getattr(ctp.corpus(name, tokenizer, 64), split).stream, torch.tensor(ids)), name

    c4 = [json.loads(line)["text"] for line in (DATA / "c4" / "c4_sample.jsonl").read_text().splitlines()]
    same("c4", "train", " ".join(c4[:850]))
    same("c4", "validation", " ".join(c4[850:900]))
    same("c4", "test", " ".join(c4[900:]))
    same("c4-256", "test", " ".join(c4[900:]), cut=256 * 64)
    ptb = {name: (DATA / "ptb" / f"ptb.{name}.txt").read_text().split("\n")[:-1] for name in ("valid", "test")}
    same("ptb", "test", " ".join(line[1:-1] for line in ptb["test"]))
    same("ptb-old", "test", "\n\n".join(line[1:-1] for line in ptb["valid"]))
    # the data set's rows keep their line breaks, blank rows are empty
    wiki = (DATA / "wikitext-2" / "wiki.test.raw").read_text().split("\n")[:-1]
    same("wikitext2", "test", "\n\n".join(row + "\n" if row.strip() else "" for row in wiki))


@needs_data
def test_the_old_c4_windows_are_the_reference_codes(tokenizer, texts):
    """The loop of the reference loader, written out: draw documents until one is long enough, then a place in it."""
    import random

    documents = [json.loads(line)["text"] for line in (DATA / "c4" / "c4_sample.jsonl").read_text().splitlines()][900:]
    random.seed(0)
    windows = []
    for _ in range(256):
        while True:
            ids = tokenizer(documents[random.randint(0, len(documents) - 1)])["input_ids"]
            if len(ids) > 512:
                break
        start = random.randint(0, len(ids) - 512 - 1)
        windows.append(ids[start : start + 512])
    assert ctp.corpus("c4-old", tokenizer, 512).test.windows.tolist() == windows
    with pytest.raises(ctp.InputError, match="learn on c4"):
        _ = ctp.corpus("c4-old", tokenizer, 512).train
    with pytest.raises(ctp.InputError, match="smaller sequence length"):
        _ = ctp.corpus("c4-old", tokenizer, 1_000_000).test


def test_the_hub_is_asked_for_the_same_splits(tokenizer, monkeypatch):
    """With a stand-in for ``datasets``: which files, which rows; and one line where there is no hub."""
    asked = []

    class Rows(dict):
        def __getitem__(self, key):
            return (
                Rows(text=dict.__getitem__(self, "text")[key]) if isinstance(key, slice) else super().__getitem__(key)
            )

    def load_dataset(*where, **options):
        asked.append((*where, options.get("data_files", {}).get("x")))
        if where[0] == "ptb-text-only/ptb_text_only":
            raise ConnectionError("no hub")
        return Rows(text=[f"word{i}" for i in range(6000)])

    monkeypatch.delenv("CTPLAB_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    text = ctp.corpus("c4", tokenizer, 8)
    for split, (first, last) in {"train": (0, 5000), "validation": (5000, 5500), "test": (0, 1100)}.items():
        words = " ".join(f"word{i}" for i in range(first, last))
        assert getattr(text, split).stream.tolist() == tokenizer(words, verbose=False)["input_ids"]
    assert [a[-1][:8] for a in asked] == ["en/c4-tr", "en/c4-tr", "en/c4-va"]
    with pytest.raises(ctp.InputError, match=r"ConnectionError.*set CTPLAB_DATA"):
        _ = ctp.corpus("ptb", tokenizer, 8).test
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ctp.InputError, match="pip install datasets"):
        _ = ctp.corpus("wikitext2", tokenizer, 8).test
