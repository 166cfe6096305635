"""Files are written whole or not at all; a result is kept until what it was made from changes."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import ctplab as ctp
from ctplab import disk


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "a.json"
    disk.write_json({"n": 1}, path)
    with pytest.raises(RuntimeError), disk.whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), disk.whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert disk.read_json(path) == {"n": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ctp.InputError, match=r"cannot write .*file/a\.json: (Not a directory|File exists)"):
        disk.write_json({}, tmp_path / "file" / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ctp.InputError, match=r"cannot write .*folder: Is a directory"):
        disk.write_text("x", tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a.json"
    texts = [{"text": letter * 100_000} for letter in "abcdefgh"]
    writers = [threading.Thread(target=disk.write_json, args=(text, path)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert disk.read_json(path) in texts and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "3", '{"key": 1}', '{"key": {"a": 1}, "result": [2]}', "[" * 100_000]
)
def test_a_damaged_result_is_computed_again(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    assert disk.once(path, {"a": 1}, lambda: {"x": 2}) == {"x": 2}
    kept = json.loads(path.read_text())
    assert kept["key"] == {"a": 1} and kept["result"] == {"x": 2}


def test_a_result_is_kept_while_its_key_stays(tmp_path):
    calls: list[int] = []

    def compute():
        calls.append(1)
        return {"n": len(calls)}

    keep = disk.kept_in(tmp_path)
    assert [keep("a b/c", {"k": k}, compute)["n"] for k in (1, 1, 2, 2, 1)] == [1, 1, 2, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["a-b-c.json"]
    assert disk.kept_at(tmp_path / "a-b-c.json")("other name", {"k": 1}, compute) == {"n": 3}
    assert disk.compute_always("x", {}, compute) == {"n": 4}


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), disk.whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert not list((tmp_path / "a").iterdir())
    with disk.whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "all").write_text("x")
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "all"]


def test_a_folder_that_came_meanwhile_stays(tmp_path):
    with pytest.raises(ctp.InputError, match="exists already"), disk.whole_folder(tmp_path / "a"):
        (tmp_path / "a").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_file_can_be_read_by_whom_any_new_file_can(tmp_path):
    """The safetensors library makes files that their owner alone can read; a server may run as somebody else."""
    (tmp_path / "plain").write_text("")
    with disk.whole(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)
    with disk.whole_folder(tmp_path / "folder") as new:
        (new / "deep").mkdir()
        save_file({"a": torch.zeros(2)}, new / "deep" / "a.safetensors")
    files = (tmp_path / "a.safetensors", tmp_path / "folder" / "deep" / "a.safetensors")
    assert {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}


def test_a_place_that_takes_no_file_is_told_before_the_work(tmp_path, monkeypatch):
    disk.check_writable(tmp_path / "new" / "newer", room=1000)
    assert list(tmp_path.iterdir()) == [], "nothing is made for that"
    (tmp_path / "file").write_text("")
    with pytest.raises(ctp.InputError, match=r"cannot write .*inside: .*file is not a folder"):
        disk.check_writable(tmp_path / "file" / "inside")
    monkeypatch.setattr(disk.os, "access", lambda path, mode: path != tmp_path)  # who runs tests may write anywhere
    with pytest.raises(ctp.InputError, match=r"cannot write .*new: Permission denied"):
        disk.check_writable(tmp_path / "new")


def test_a_disk_without_room_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    disk.check_writable(tmp_path / "new", room=1_500_000)
    with pytest.raises(ctp.InputError, match=r"cannot write .*new: this needs 2\.0 MB, and 1\.5 MB are free"):
        disk.check_writable(tmp_path / "new", room=2_000_000)
