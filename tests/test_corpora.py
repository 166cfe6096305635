"""Corpora: names, splits, joins, bad input."""

import json

import pytest
import torch

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
