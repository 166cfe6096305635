"""Copies that differ in one thing: in exactly that, and each made once."""

from dataclasses import fields

import pytest
from conftest import tiny

import ctplab as ctp
from ctplab.atlas.registers import document
from ctplab.runs.variants import Making, variants

MAKING = Making(ctp.CompressionSpec(bits=3), "atlas-web", 6, 40)
SIMPLE = ("seed", "text=docs", "samples=5", "seq_len=32", "dtype", "act_order", "damp=0.1", "bits=4", "block=64")


def different(a: Making, b: Making) -> set[str]:
    """Names of the settings that differ, those of the spec one by one."""
    own = {f.name for f in fields(Making) if f.name != "spec" and getattr(a, f.name) != getattr(b, f.name)}
    return own | {f.name for f in fields(a.spec) if getattr(a.spec, f.name) != getattr(b.spec, f.name)}


def test_each_differs_in_what_it_names_and_in_nothing_else():
    same, *others = variants(MAKING, SIMPLE)
    assert (same.name, same.making, dict(same.changed)) == ("same", MAKING, {})
    for change, other in zip(SIMPLE, others, strict=True):
        assert different(MAKING, other.making) == {change.partition("=")[0]} == set(other.changed)


def test_the_other_value():
    seed, dtype, order, back = variants(MAKING, ("seed", "dtype", "act-order", "seed=7"))[1:]
    assert seed.making.seed == 1 and dtype.making.dtype == "bfloat16" and order.making.spec.act_order
    assert back.making.seed == 7
    bfloat = Making(MAKING.spec, "docs", 6, 40, dtype="bfloat16")
    assert variants(bfloat, ["dtype"])[1].making.dtype == "float32"


def test_another_method():
    (pruned,) = variants(MAKING, ["bits=none+sparsity=0.5"])[1:]
    assert pruned.making.spec == ctp.CompressionSpec(sparsity=0.5) and pruned.making.spec.method == "sparsegpt"
    assert pruned.name == "bits-none+sparsity-0.5"


def test_a_plus_in_a_path_joins_nothing():
    assert variants(MAKING, ["text=file:/a/b+c.txt"])[1].making.text == "file:/a/b+c.txt"


@pytest.mark.parametrize(
    "change, message",
    [
        ("colour=red", "nothing that copies can differ in"),
        ("text", "needs a value"),
        ("bits", "needs a value"),
        ("bits=3", "changes nothing"),
        ("bits=many", "must be a number"),
        ("bits=5", "bits must be"),
        ("samples=0", "at least 1"),
        ("dtype=int8", "dtype must be one of"),
        ("act_order=perhaps", "true or false"),
        ("bits=none", "nothing to do"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ctp.InputError, match=message):
        variants(MAKING, [change])


def test_names_tell_them_apart():
    with pytest.raises(ctp.InputError, match="named twice"):
        variants(MAKING, ["damp=0.1", "damp=0.1"])


def test_folders_are_those_of_the_same_compression_and_are_made_once(tokenizer, tmp_path, quiet):
    (tmp_path / "text.txt").write_text("\n\n".join(document("atlas-web", "train", i) for i in range(20)))
    text = ctp.corpus(f"file:{tmp_path / 'text.txt'}", tokenizer, 48)
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    told = []
    how = {"device": "cpu", "tell": lambda variant, manifest: told.append(variant.name), **quiet}
    making = Making(ctp.CompressionSpec(bits=3), text.name, 4, 48)
    args = (tmp_path / "model", tmp_path / "out", tokenizer, making, ["seed", "act_order"])
    folders = ctp.vary(*args, **how)
    assert told == ["same", "seed", "act_order"] == list(folders)
    alone = tmp_path / "alone"
    order = ctp.CompressionSpec(bits=3, act_order=True)
    ctp.compress_to(tmp_path / "model", alone, tokenizer, text.train.sample(4, 0), order, device="cpu", **quiet)
    mine, its = (ctp.load(folder, device="cpu")[0] for folder in (folders["act_order"], alone))
    assert ctp.weight_distance(mine, its).apart == 0
    same, seed = (ctp.load(folders[name], device="cpu")[0] for name in ("same", "seed"))
    assert ctp.weight_distance(same, seed).apart > 0
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("block-*")}
    ctp.vary(*args, **how)
    assert blocks == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("block-*")}
