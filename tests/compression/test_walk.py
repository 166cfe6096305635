"""Compression of whole models, saved and loaded."""

import json

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config

import ctplab as ctp
from ctplab.compression.capture import capture, find_groups
from ctplab.formats.checkpoint import MANIFEST, describe
from ctplab.models.anatomy import blocks, linears, parameter_name
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
    manifest = ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    loaded, _ = ctp.load(tmp_path / "m", device="cpu")
    packed, _ = ctp.load(tmp_path / "m", device="cpu", packed=True)
    scores = [ctp.perplexity(ctp.Arm("x", m, prefix.none(m)), windows).nll for m in (small, loaded, packed)]
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)  # fp32 products in another order
    assert manifest["bytes"] == sum(p.stat().st_size for p in (tmp_path / "m").glob("*.safetensors"))
    assert describe(tmp_path / "m")["tag"] == report.spec.tag


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
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    whole = (tmp_path / "block-00001.safetensors").read_bytes()
    (tmp_path / "block-00001.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load(tmp_path)
    (tmp_path / "block-00001.safetensors").write_bytes(whole)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ctp.InputError, match="did not finish"):
        ctp.load(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest)[:100])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load(tmp_path)


@pytest.mark.parametrize("config", MORE_FAMILIES)
def test_no_architecture_is_special(config, windows, quiet):
    """Found by running: local and global layers, fused and grouped queries, parallel blocks, stacked experts."""
    model = from_config(getattr(transformers, config)(**MORE_FAMILIES[config]))
    small, report = ctp.compress(model, windows, ctp.CompressionSpec(bits=8), **quiet)
    compressed = {parameter_name(layer.name, small) for layer in report.layers}
    in_blocks = tuple(name for name, _ in blocks(model))
    for name, parameter in small.named_parameters():
        router = name.endswith("mlp.gate.weight")  # a router is no linear layer in transformers, and stays as it is
        if parameter.ndim > 1 and name.startswith(in_blocks) and not router:
            assert name in compressed, f"{name} was left out"
        assert name in compressed or name in report.untouched or parameter.ndim == 1
    full, eight = model(windows[:2]).logits, small(windows[:2]).logits
    # 8 bits a weight: relative weight error about 2^-8, grown by a few layers
    assert (full - eight).abs().mean() < 0.05 * full.std()


@pytest.mark.parametrize("config", ["MixtralConfig", "Qwen2MoeConfig"])
def test_experts_that_saw_nothing_are_rounded_and_reported(config, web, tokenizer, tmp_path, quiet):
    model = from_config(getattr(transformers, config)(**MORE_FAMILIES[config]))
    one = web.train.sample(1)[:, :2]  # two tokens cannot reach all experts
    small, report = ctp.compress(model, one, ctp.CompressionSpec(bits=4), **quiet)
    silent = [layer for layer in report.layers if layer.fallback and "no calibration tokens" in layer.fallback]
    assert silent and all("experts" in layer.name for layer in silent)
    assert any(layer.name in warning for layer in silent for warning in report.warnings)
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    loaded, _ = ctp.load(tmp_path, device="cpu")
    assert torch.equal(loaded(one).logits, small(one).logits)


def test_inputs_are_shared_where_they_are_shared(llama, windows, quiet):
    block = blocks(llama)[0][1]
    flow = capture(llama, [b for _, b in blocks(llama)], (windows,))
    found = find_groups(block, lambda: flow.sample(0, block))
    assert [{n.split(".")[-1] for n in group} for group in found.groups] == [
        {"q_proj", "k_proj", "v_proj"},
        {"o_proj"},
        {"gate_proj", "up_proj"},
        {"down_proj"},
    ]
    assert found.stoppable


def test_few_calibration_tokens_warn(llama, web, quiet):
    _, report = ctp.compress(llama, web.train.sample(1)[:, :20], ctp.CompressionSpec(bits=4), **quiet)
    assert any("fewer than the 64 columns" in warning for warning in report.warnings)
