"""Compression of whole models, saved and loaded."""

import json

import pytest
import torch

import ctplab as ctp
from ctplab.compress.checkpoint import MANIFEST, describe
from ctplab.models import blocks, linears
from ctplab.prompts import prefix


@pytest.fixture
def windows(web):
    return web.train.sample(8, seed=0)


def test_every_linear_of_every_family_is_found_and_nothing_else(model, windows, quiet):
    before = {name: p.clone() for name, p in model.named_parameters()}
    small, report = ctp.compress(model, windows, ctp.CompressionSpec(bits=4), **quiet)
    expected = {f"{block}.{name}" for block, module in blocks(model) for name in linears(module)}
    assert {layer.name for layer in report.layers} == expected
    for name, parameter in small.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (name.removesuffix(".weight") in expected), name
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "the original was touched"
    assert torch.isfinite(small(windows[:2]).logits).all()


@pytest.mark.parametrize(
    "spec", [{"bits": 3}, {"sparsity": 0.5}, {"bits": 4, "sparsity": 0.5}, {"bits": 4, "group_size": 8}]
)
def test_save_load_score_is_bitwise_the_same(model, windows, tokenizer, tmp_path, spec, quiet):
    small, report = ctp.compress(model, windows, ctp.CompressionSpec(**spec), **quiet)
    manifest = ctp.save(tmp_path / "m", small, tokenizer, report, "tiny")
    loaded, _ = ctp.load(tmp_path / "m")
    packed, _ = ctp.load(tmp_path / "m", packed=True)
    scores = [ctp.perplexity(ctp.Arm("x", m, prefix.none(m)), windows).nll for m in (small, loaded, packed)]
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)  # fp32 products in another order
    assert manifest["bytes"] == sum(p.stat().st_size for p in (tmp_path / "m").glob("*.safetensors"))
    assert describe(tmp_path / "m")["tag"] == report.spec.tag


def test_true_sequential_gives_another_better_or_equal_answer(llama, windows, quiet):
    _, plain = ctp.compress(llama, windows, ctp.CompressionSpec(bits=2), **quiet)
    small, staged = ctp.compress(llama, windows, ctp.CompressionSpec(bits=2, true_sequential=True), **quiet)
    assert [x.name for x in plain.layers] == [x.name for x in staged.layers]
    assert torch.isfinite(small(windows[:1]).logits).all()


def test_batch_size_does_not_matter(llama, windows, quiet):
    spec = ctp.CompressionSpec(bits=4)
    losses = [[x.loss for x in ctp.compress(llama, windows, spec, batch=b, **quiet)[1].layers] for b in (3, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # fp32 Hessians summed in another order may flip a code


def test_nan_weights_stop_with_the_layers_name(llama, windows, quiet):
    name, layer = next(iter(linears(blocks(llama)[1][1]).items()))
    layer.weight[0, 0] = float("nan")
    with pytest.raises(ctp.InputError, match=f"{name}.*NaN"):
        ctp.compress(llama, windows, ctp.CompressionSpec(bits=4), **quiet)


def test_group_size_must_divide(llama, windows, quiet):
    with pytest.raises(ctp.InputError, match="group size 7 does not divide"):
        ctp.compress(llama, windows, ctp.CompressionSpec(bits=4, group_size=7), **quiet)


def test_unfinished_and_damaged_folders_are_refused(llama, windows, tokenizer, tmp_path, quiet):
    small, report = ctp.compress(llama, windows, ctp.CompressionSpec(bits=4), **quiet)
    ctp.save(tmp_path, small, tokenizer, report, "tiny")
    whole = (tmp_path / "packed.safetensors").read_bytes()
    (tmp_path / "packed.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load(tmp_path)
    (tmp_path / "packed.safetensors").write_bytes(whole)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ctp.InputError, match="did not finish"):
        ctp.load(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest)[:100])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load(tmp_path)
