"""Text, JSON and TOML of others: read rightly, or refused in a line that says what to do."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import ctplab as ctp
from ctplab import disk, tensor_files, text_files
from ctplab.models.weights import INDEX, weight_files
from ctplab.text.documents import read_documents, read_splits

TEXTS = ["A river runs.", "A\u2028mill\u0085 turns \u2029here.", "水"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "lines.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_are_read_whatever_marks_them(tmp_path, name, encoding):
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    (tmp_path / name).write_text("\n".join(rows), encoding=encoding)
    assert read_documents(tmp_path / name) == TEXTS


def test_a_json_list_is_read_and_other_json_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": text} for text in TEXTS]))
    assert read_documents(path) == TEXTS
    path.write_text(json.dumps({"data": TEXTS}))
    with pytest.raises(ctp.InputError, match="no list of rows"):
        read_documents(path)
    path.write_text(json.dumps([{"text": "x"}, "y"]))
    with pytest.raises(ctp.InputError, match=r"a\.json, row 2: it is no JSON object"):
        read_documents(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("null", "line 2: .* but None"),
        ("5", "line 2: .* but 5"),
        ('["a"]', "line 2: "),
        ('"half \\ud83d of a pair"', r"line 2: 'text' holds \\ud83d, half of a character"),
        ("9" * 5000, "line 2: it holds a number beyond 64 bits"),
        ("[" * 100_000, "line 2: it is nested deeper"),
        ("[" * 99 + "]" * 99, "line 2: it is nested deeper"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path, value, said):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{{"text": {value}}}\n')
    with pytest.raises(ctp.InputError, match=said) as refused:
        read_documents(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("A text.".encode("utf-16"), "UTF-16 text.*iconv -f UTF-16 "),
        ("A text.".encode("utf-16-le"), "UTF-16LE text"),
        ("A text.".encode("utf-16-be"), "UTF-16BE text"),
        ("A text.".encode("utf-32"), "UTF-32 text"),
        ("one\ntwo\nété".encode("latin-1"), "line 3 is not UTF-8.*Latin-1"),
        (b"\x1f\x8b\x08\x00" + bytes(90), "gzip file: unpack"),
        (bytes(range(256)) * 20, "binary|UTF"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ctp.InputError, match=said):
        read_documents(tmp_path / "a.txt")


@pytest.mark.parametrize("letter", ["水", "acgt", "水 "])
def test_texts_without_spaces_have_three_splits(tmp_path, letter):
    path = tmp_path / "a.txt"
    path.write_text(letter * 2000)
    splits = {name: "".join(map(str, found)) for name, found in read_splits(str(path)).items()}
    whole = len(letter) * 2000
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert len(splits[name]) == pytest.approx(share * whole, abs=0.01 * whole)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "dangling", "missing", "long", "nul", "surrogate"])
def test_paths_that_are_no_files(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    path = {"device": "/dev/zero", "long": "x" * 300, "nul": "a\0b", "surrogate": "\udc80/x"}.get(kind) or path
    for read in (text_files.read_json, text_files.read_toml, text_files.read_text, tensor_files.read):
        with pytest.raises(ctp.InputError, match="cannot read"):
            read(disk.Path(path))


def test_other_numbers_than_json_has_are_refused_except_in_configurations(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    with pytest.raises(ctp.InputError, match="not finite"):
        text_files.read_json(path)
    assert text_files.read_json(path, finite=False)["time_step_limit"][1] == float("inf")


def test_types_are_checked_and_booleans_are_no_numbers():
    text_files.expect({"a": 1, "b": None, "c": True}, a=float, b=str | None, c=bool, d=int | None)
    for data, kinds in (({"a": True}, {"a": int}), ({"a": 1.0}, {"a": int}), ({}, {"a": int}), ({"a": 1}, {"a": bool})):
        with pytest.raises(ctp.InputError, match=r"a is (missing|.*not of type)"):
            text_files.expect(data, **kinds)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../x", "a\nb", "\0", "\ud800", "x" * 300, "a b", 3])
def test_names_that_are_paths_are_none(name, tmp_path):
    with pytest.raises(ctp.InputError, match="is no name"):
        disk.check_name(name, "the tag")
    safe = disk.slug(str(name))
    assert disk.check_name(safe, "the tag") == safe and (tmp_path / safe).resolve().parent == tmp_path.resolve()
    (tmp_path / f"{safe}--{safe}.json").write_text("{}")  # two of them fit into a file's name


def test_names_that_are_names_stay():
    for name in ("w4-s50", "s62.5", "w4-s50+scales", "24", "atlas-web", "Größe_1"):
        assert disk.slug(name) == disk.check_name(name, "the tag") == name


def test_an_index_names_files_of_its_own_folder_only(tmp_path):
    (tmp_path / "evil").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors"), "..", 3):
        (tmp_path / "evil" / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ctp.InputError, match="is no name"):
            weight_files(tmp_path / "evil")


def test_damaged_tensor_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(64)}, path)
    whole = path.read_bytes()
    for content, said in (
        (whole[:-1], "cut short"),
        (whole[:20], "cut short"),
        (b"", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
        (b"<html>" + bytes(60), "no safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ctp.InputError, match=said):
            tensor_files.shapes(path)
    save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    assert tensor_files.read(path)["a"][0] == 1
    with pytest.raises(ctp.InputError, match="a holds NaN"):
        tensor_files.read(path, finite=True)


def test_a_sealed_file_is_what_was_written_or_refused(tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"a": torch.arange(8.0), "b": torch.tensor(True)}
    tensor_files.write_sealed(tensors, {"step": 3}, path)
    found, about = tensor_files.read_sealed(path)
    assert about == {"step": 3} and all(torch.equal(found[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 20, whole.index(b"step"), whole.index(b"seal")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ctp.InputError):
            tensor_files.read_sealed(path)


def test_devices_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ctp.InputError, match="device or a pipe"):
        disk.write_json({}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_tokenizers_may_say_that_they_know_no_longest_text(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": int(1e30)}))  # transformers writes it so
    with pytest.raises(ctp.InputError, match="beyond 64 bits"):
        text_files.read_json(path)
    assert text_files.read_json(path, large=True)["model_max_length"] == int(1e30)
