"""The GPTQ format: bits against an independent reader, round trips, refusals. In interop/ other programs read it."""

import json

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.compression.obs import solve
from ctplab.compression.packing import pack, unpack
from ctplab.formats.gptq import from_gptq, pack_words, to_gptq, unpack_words


def slow_word(words, bits, i, column):
    """Value ``i`` of a column, bit by bit from the words."""
    value = 0
    for b in range(bits):
        position = i * bits + b
        word = int(words[position // 32, column]) & 0xFFFFFFFF
        value |= ((word >> (position % 32)) & 1) << b
    return value


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_are_one_little_endian_stream(bits):
    values = torch.randint(0, 2**bits, (96, 5), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    words = pack_words(values, bits)
    assert words.dtype == torch.int32 and words.shape == (96 * bits // 32, 5)
    assert all(slow_word(words, bits, i, c) == values[i, c] for i in range(96) for c in range(5))
    assert torch.equal(unpack_words(words, bits), values)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("extra", [{}, {"group_size": 32}, {"group_size": 32, "act_order": True}, {"sparsity": 0.5}])
@pytest.mark.parametrize("v2", [False, True])
def test_round_trip(bits, extra, v2):
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(64, 96, generator=generator), torch.randn(96, 300, generator=generator)
    spec = ctp.CompressionSpec(bits=bits, **extra)
    parts = pack(solve(W, X @ X.T, spec), bits)
    stored = to_gptq(parts, bits, v2, "x")
    assert torch.equal(unpack(from_gptq(stored, bits, v2), bits), unpack(parts, bits))


def test_v1_refuses_a_zero_it_cannot_hold():
    W, X = torch.rand(32, 32) + 0.1, torch.randn(32, 100)
    parts = pack(solve(W, X @ X.T, ctp.CompressionSpec(bits=4)), 4)
    with pytest.raises(ctp.InputError, match="to='gptq_v2', or compress it with symmetric=True"):
        to_gptq(parts, 4, False, "layer")
    assert torch.equal(unpack(from_gptq(to_gptq(parts, 4, True, "layer"), 4, True), 4), unpack(parts, 4))


@pytest.fixture
def compressed(web, tokenizer, tmp_path, quiet):
    windows = web.train.sample(8)
    small, report = ctp.compress(tiny("llama"), windows, ctp.CompressionSpec(bits=4, symmetric=True), **quiet)
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    return tmp_path / "m", small, windows


@pytest.mark.parametrize("to", ["gptq_v2", "dense"])
def test_exported_folders_load_with_equal_logits(compressed, tmp_path, to):
    # the tiny model's key and value heads have 16 rows: too few for GPTQ's words of 32
    folder, small, windows = compressed
    if to == "gptq_v2":
        with pytest.raises(ctp.InputError, match="multiples of 32"):
            ctp.export(folder, tmp_path / "g", to)
        return
    ctp.export(folder, tmp_path / "g", to)
    for there in (tmp_path / "g", folder):  # an export, or the very model
        before = {path.name: path.read_bytes() for path in there.iterdir()}
        with pytest.raises(ctp.InputError, match="exists already; choose another folder"):
            ctp.export(folder, there, to)
        assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    loaded, _ = ctp.load(tmp_path / "g", device="cpu")
    # weights in half precision: 2^-11 relative, through two layers
    torch.testing.assert_close(loaded(windows[:2]).logits, small(windows[:2]).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_gptq_folders_are_read_back_dense_and_packed(bits, family, web, tokenizer, tmp_path, quiet):
    windows = web.train.sample(8)
    spec = ctp.CompressionSpec(bits=bits, symmetric=True)
    small, report = ctp.compress(tiny(family), windows, spec, **quiet)
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    ctp.export(tmp_path / "m", tmp_path / "g", "gptq")
    for name in ("config.json", "quantize_config.json"):
        labelled = json.loads((tmp_path / "g" / name).read_text())
        assert labelled.get("quantization_config", labelled)["checkpoint_format"] == "gptq"
    for packed in (False, True):
        loaded, _ = ctp.load(tmp_path / "g", device="cpu", packed=packed)
        # same codes and scales; only embeddings and biases may have been rounded, and here they are exact
        torch.testing.assert_close(loaded(windows[:2]).logits, small(windows[:2]).logits, rtol=1e-4, atol=1e-4)


def test_damaged_and_unknown_gptq_folders_are_one_line(web, tokenizer, tmp_path, quiet):
    small, report = ctp.compress(
        tiny("gpt2"), web.train.sample(4), ctp.CompressionSpec(bits=4, symmetric=True), **quiet
    )
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    out = tmp_path / "g"
    ctp.export(tmp_path / "m", out, "gptq")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "marlin"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ctp.InputError, match="marlin"):
        ctp.load(out)
    config["quantization_config"] |= {"checkpoint_format": "gptq", "bits": 8}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ctp.InputError, match="do not fit"):
        ctp.load(out)
    (out / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load(out)


def test_pruned_models_and_unknown_formats_are_refused(web, tokenizer, tmp_path, quiet):
    small, report = ctp.compress(tiny("gpt2"), web.train.sample(4), ctp.CompressionSpec(sparsity=0.5), **quiet)
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    with pytest.raises(ctp.InputError, match="to='dense'"):
        ctp.export(tmp_path / "m", tmp_path / "g", "gptq")
    with pytest.raises(ctp.InputError, match="known are gptq"):
        ctp.export(tmp_path / "m", tmp_path / "g", "awq")


@pytest.mark.parametrize("packed", [False, True])
def test_a_prompt_is_learned_on_a_gptq_checkpoint(packed, web, tokenizer, tmp_path, quiet):
    spec = ctp.CompressionSpec(bits=4, symmetric=True)
    small, report = ctp.compress(tiny("gpt2"), web.train.sample(4), spec, **quiet)
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    ctp.export(tmp_path / "m", tmp_path / "g", "gptq")
    loaded, _ = ctp.load(tmp_path / "g", device="cpu", packed=packed)
    recipe = ctp.PromptSpec(tokens=4, steps=8, batch=4, lr=0.05, evaluate_every=4, validation_windows=4)
    learned = ctp.learn(loaded, web.train, web.validation, recipe, **quiet)
    assert learned.best_step > 0 and not torch.equal(learned.prefix.rows, learned.initial.rows)
