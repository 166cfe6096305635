"""Answers about models are found once and kept: those used last, whatever other processes or the disk do meanwhile."""

import os
import threading

import pytest
import torch
from conftest import tiny

from ctplab.errors import InputError
from ctplab.models import checks
from ctplab.models.checks import drop_oldest, kept_answer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path))
    return tmp_path / "checks"


def counted(answers):
    """A ``find`` that says the next answer each time, and nothing after the last."""
    said = iter(answers)
    return lambda: {"says": next(said)}


def test_an_answer_is_found_once_and_a_damaged_one_again(folder, llama):
    find = counted([1, 2])
    assert [kept_answer(llama, "x", find)["says"] for _ in range(3)] == [1, 1, 1]
    (path,) = folder.iterdir()
    for damage in ("", "{", '{"key": 1}', path.read_text().replace('"says": 1', '"says": 7')):
        path.write_text(damage)
        assert kept_answer(llama, "x", counted([5])) == {"says": 5}
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_the_answers_used_last_stay(folder, llama, monkeypatch):
    monkeypatch.setattr(checks, "MOST", 3)
    for i, what in enumerate("abc"):
        kept_answer(llama, what, counted([what]))
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (i, i))  # long ago, in this order
    kept_answer(llama, "a", counted([]))  # used again
    kept_answer(llama, "d", counted(["d"]))
    assert len(list(folder.iterdir())) == 3
    assert [kept_answer(llama, what, counted([f"{what} anew"]))["says"] for what in "adb"] == ["a", "d", "b anew"]


def test_what_is_tuned_into_a_model_asks_nothing_anew(folder, llama):
    kept_answer(llama, "x", counted([1]))
    llama.config.ctplab_tuned = "0123456789abcdef"
    assert kept_answer(llama, "x", counted([2])) == {"says": 1}
    other = tiny("llama").to(torch.bfloat16)
    assert kept_answer(other, "x", counted([2])) == {"says": 2}


def test_a_cache_that_cannot_be_written_costs_one_search(tmp_path, monkeypatch, llama):
    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert kept_answer(llama, "x", counted([1])) == {"says": 1}

    def refuse():
        raise InputError("no such model")

    with pytest.raises(InputError, match="no such model"):
        kept_answer(llama, "x", refuse)


def test_several_may_drop_the_oldest_at_once(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}.json").write_text("")
        os.utime(tmp_path / f"{i}.json", (i, i))
    failed = []

    def drop():
        try:
            drop_oldest(tmp_path, 50)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and {path.name for path in tmp_path.iterdir()} == {f"{i}.json" for i in range(150, 200)}
