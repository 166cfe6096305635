"""The prompt file: it loads as saved, bad files are refused, and no partial prompt is ever left on disk."""

import json
import pickle
import resource
from importlib.metadata import version

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

import ctplab as ctp
from ctplab.formats import prompt_file
from ctplab.models.fingerprints import copy_fingerprint
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.prefix import KVPrefix, Prefix


@pytest.fixture
def folder(llama, tokenizer, tmp_path):
    start = prefix.random_rows(llama, 5, name="init")
    info = {**prompt_file.made_for(llama, tokenizer), "base": "tiny", "tag": "w4"}
    prompt_file.write(Prefix("soft", start.rows + 1), start, info, tmp_path / "p")
    return tmp_path / "p"


def change(folder, **entries):
    info = json.loads((folder / "prompt.json").read_text())
    (folder / "prompt.json").write_text(json.dumps(info | entries))


def refused(folder) -> str:
    with pytest.raises(ctp.InputError) as caught:
        ctp.load_prompt(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_rows_and_their_start_come_back(folder, llama):
    prompt = ctp.load_prompt(folder)
    E, start = prompt.rows()
    assert torch.equal(E.rows, start.rows + 1) and start.ids == prefix.random_rows(llama, 5).ids
    assert prompt.info["versions"] == {"ctplab": ctp.__version__, **{n: version(n) for n in ("torch", "transformers")}}


@torch.no_grad()
def test_keys_and_values_come_back_and_belong_to_one_shape(model, tokenizer, tmp_path):
    kv = compile_prefix(model, prefix.random_rows(model, 5))
    prompt_file.write(KVPrefix("soft", tuple(kv)), None, prompt_file.made_for(model, tokenizer), tmp_path / "kv")
    prompt = ctp.load_prompt(tmp_path / "kv")
    back = compile_prefix(model, prompt.prefix)
    assert all(torch.equal(a, b) for x, y in zip(kv, back, strict=True) for a, b in zip(x, y, strict=True))
    assert ctp.attach(prompt, model, tokenizer) == []
    with pytest.raises(ctp.InputError, match="no rows"):
        prompt.rows()
    other = tiny("neox" if model.config.model_type == "llama" else "llama")
    with pytest.raises(ctp.InputError, match="other layers or heads"):
        ctp.attach(prompt, other, tokenizer)


def test_another_level_of_the_same_base_is_fine_and_said(folder, llama, tokenizer):
    prompt = ctp.load_prompt(folder)
    assert ctp.attach(prompt, llama, tokenizer) == []
    (note,) = ctp.attach(prompt, llama, tokenizer, tag="w4")  # files of before copies were recorded
    assert "does not say through which compression" in note
    assert ctp.attach(prompt, llama, tokenizer, tag="w3") == [
        "the prompt was learned on w4 and is used on w3, the same base model: a prompt of another level often does harm"
    ]


def test_the_base_is_known_in_whatever_dtype(folder, llama, tokenizer):
    """A prompt learned on a CPU is used on a GPU, where models are in bfloat16, and the other way round."""
    half = tiny("llama").bfloat16()
    prompt_file.write(Prefix("soft", torch.ones(5, 32)), None, prompt_file.made_for(half, tokenizer), folder / "half")
    for where in (folder, folder / "half"):
        for model in (llama, half, tiny("llama").half()):
            assert ctp.attach(ctp.load_prompt(where), model, tokenizer) == []
    llama.get_input_embeddings().weight[0, 0] *= -1
    for said in ({}, {"base_signs": None}):  # files of earlier versions hold no signs
        change(folder, **said)
        assert "another base model" in ctp.attach(ctp.load_prompt(folder), llama, tokenizer)[0]
        assert "another base model" in ctp.attach(ctp.load_prompt(folder), llama.half(), tokenizer)[0]


def test_another_copy_of_the_same_level_is_said(folder, llama, tokenizer):
    """Not on a copy that it was learned through, nor on another level, which is said already."""
    change(folder, copies=[copy_fingerprint(llama)])
    assert ctp.attach(ctp.load_prompt(folder), llama, tokenizer, tag="w4") == []
    change(folder, copies=["0" * 16])
    [one] = ctp.attach(ctp.load_prompt(folder), llama, tokenizer, tag="w4")
    assert "learned through another compression of this model" in one
    assert len(ctp.attach(ctp.load_prompt(folder), llama, tokenizer, tag="w3")) == 1
    change(folder, copies=["0" * 16, "1" * 16])
    [several] = ctp.attach(ctp.load_prompt(folder), llama, tokenizer)
    assert "through 2 other compressions" in several
    change(folder, copies="0" * 16)
    assert "copies is no list" in refused(folder)


def test_wrong_pairs_name_both_sides(folder, tokenizer):
    with pytest.raises(ctp.InputError, match="width 32, the model 16: it was made for tiny, and this is OPT"):
        ctp.attach(ctp.load_prompt(folder), tiny("opt"), tokenizer)
    change(folder, tokenizer_fingerprint="0" * 16)
    with pytest.raises(ctp.InputError, match="made for tiny, which has another tokenizer than LlamaForCausalLM"):
        ctp.attach(ctp.load_prompt(folder), tiny("llama"), tokenizer)


@pytest.mark.parametrize("entry", ["tokenizer_fingerprint", "base_fingerprint"])
def test_unknown_origin_needs_force(folder, llama, tokenizer, entry):
    change(folder, **{entry: None})
    prompt = ctp.load_prompt(folder)
    with pytest.raises(ctp.InputError, match="force=True"):
        ctp.attach(prompt, llama, tokenizer)
    assert "origin is unknown" in ctp.attach(prompt, llama, tokenizer, force=True)[0]


@pytest.mark.parametrize(
    "entries, reason",
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"k": "5"}, "k is '5'"),
        ({"k": True}, "k is True"),
        ({"k": -5}, "k is -5"),
        ({"k": 6}, "5 init_ids for 6 rows"),
        ({"k": 6, "init_ids": []}, "init is no"),
        ({"width": 33}, "init is no"),
        ({"width": None}, "width is None"),
        ({"base": ["a"]}, "base is no text"),
        ({"tag": 4}, "tag is no text"),
        ({"tokenizer_fingerprint": 7}, "tokenizer_fingerprint is no text"),
        ({"init_ids": "12345"}, "init_ids is no list"),
        ({"init_ids": [1.5] * 5}, "init_ids is no list"),
        ({"init_ids": [1, 2]}, "2 init_ids for 5 rows"),
        ({"kind": "lora"}, "neither rows nor kv"),
        ({"kind": ["rows"]}, "neither rows nor kv"),
        ({"kind": "kv"}, "not .1, heads, 5"),
    ],
)
def test_manifests_that_lie_are_refused(folder, entries, reason):
    import re

    change(folder, **entries)
    assert re.search(reason, refused(folder))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"schema": 1}', "[" * 100_000, "\udcff"])
def test_manifests_that_are_no_manifests_are_refused(folder, text):
    (folder / "prompt.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "damaged" in refused(folder)


def test_tensor_files_that_are_none_are_refused(folder, tmp_path):
    path = folder / "prompt.safetensors"
    good = path.read_bytes()

    class Evil:
        def __reduce__(self):
            return ((tmp_path / "owned").mkdir, ())

    bad = {
        "empty": b"",
        "cut in the header": good[:40],
        "cut in the numbers": good[:-1],
        "longer than it says": good + b"\0",
        "a pickle": pickle.dumps(Evil()),
        "a header larger than any file": (2**62).to_bytes(8, "little") + good[8:],
        "a header of 200 MB that is not there": (200_000_000).to_bytes(8, "little") + good[8:],
        "a header that is no JSON": good[:8] + b"\xff" * (len(good) - 8),
    }
    for name, content in bad.items():
        path.write_bytes(content)
        assert "damaged" in refused(folder), name
    assert not (tmp_path / "owned").exists()


def test_bad_numbers_and_shapes_are_refused(folder):
    path = folder / "prompt.safetensors"
    good = load_file(path)
    nan = good["E"].clone()
    nan[3, 7] = float("nan")
    for tensors, reason in (
        ({"E": nan}, "NaN"),
        ({"E": good["E"], "init": good["init"] / 0}, "NaN or infinite"),
        ({"E": good["E"][:4].contiguous()}, "E has the shape"),
        ({"E": good["E"].flatten()}, "E has the shape"),
        ({"other": good["E"]}, "'E'"),
    ):
        save_file(tensors, path)
        assert reason in refused(folder)


def test_missing_files_are_named(folder, tmp_path):
    assert "prompt.json is missing" in refused(tmp_path / "nowhere")
    (folder / "prompt.safetensors").unlink()
    assert "prompt.safetensors is missing" in refused(folder)


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_no_half_prompt(folder, llama, tmp_path, before):
    """A real limit on the size of any file, so the write itself fails; an earlier prompt stays whole."""
    out = folder if before else tmp_path / "new"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = prefix.random_rows(llama, 2000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ctp.InputError, match=r"cannot write .*prompt.safetensors: .*[Ff]ile too large"):
            prompt_file.write(big, None, {"width": 32}, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in out.iterdir()) == (["prompt.json", "prompt.safetensors"] if before else [])
    if before:
        assert ctp.load_prompt(folder).prefix.k == 5


def test_prompts_saved_before_there_were_kinds_still_load(folder):
    info = json.loads((folder / "prompt.json").read_text())
    del info["kind"]
    (folder / "prompt.json").write_text(json.dumps(info))
    assert ctp.load_prompt(folder).rows()[0].k == 5
