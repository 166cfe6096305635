"""One rule for what a model folder must hold, whichever command reads it: all weights, as numbers, and no others."""

import json

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

import ctplab as ctp

SPEC = ctp.CompressionSpec(bits=8)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """folder(change, **config) -> a model folder whose tensors ``change`` has rewritten."""

    def made(change=lambda tensors: tensors, **config):
        model = tiny("llama")
        model.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        path = tmp_path / "m" / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        settings = json.loads((tmp_path / "m" / "config.json").read_text()) | config
        (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
        return tmp_path / "m"

    return made


@pytest.fixture
def commands(web, tokenizer, tmp_path, quiet):
    """The two ways in which weights are read."""
    windows = web.train.sample(4, seed=0)
    return {
        "load": lambda path: ctp.load(path, device="cpu"),
        "compress": lambda path: ctp.compress_to(
            path, tmp_path / "out", tokenizer, windows, SPEC, device="cpu", **quiet
        ),
    }


def without(part):
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def beside(name):
    return lambda tensors: tensors | {name: torch.ones(1)}


def as_codes(kind, scale):
    def change(tensors):
        codes = {n: (t / t.abs().max() * 100).to(kind) for n, t in tensors.items() if "proj.weight" in n}
        return tensors | codes | {n.replace("weight", scale): torch.ones(1) for n in codes}

    return change


REFUSED = {
    "a block's matrices are missing": (without("layers.1.mlp"), {}, "weights are missing in its files: .*layers.1.mlp"),
    "the head is missing": (without("lm_head"), {}, "weights are missing in its files: lm_head.weight"),
    "a scale beside a weight": (beside("model.layers.0.mlp.up_proj.weight_scale"), {}, "does not read"),
    "a bias that the model lacks": (beside("lm_head.bias"), {}, "its files hold lm_head.bias, which"),
    "8-bit floats": (as_codes(torch.float8_e4m3fn, "weight_scale_inv"), {}, "stored as F8_E4M3: codes, not weights"),
    "bytes": (as_codes(torch.int8, "SCB"), {}, "stored as I8: codes, not weights"),
    "a packed format that the configuration names": (
        as_codes(torch.float8_e4m3fn, "weight_scale"),
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        "holds codes, not weights .quantization_config: compressed-tensors",
    ),
}


@pytest.mark.parametrize("command", ["load", "compress"])
@pytest.mark.parametrize("what", REFUSED)
def test_every_command_refuses_the_same_folders(what, command, folder, commands):
    change, config, reason = REFUSED[what]
    path = folder(change, **config)
    with pytest.raises(ctp.InputError, match=reason):
        commands[command](path)


@pytest.mark.parametrize("name", ["vision.layers.0.weight", "model.layers.7.mlp.up_proj.weight"])
def test_parts_that_the_model_does_not_have_are_harmless(name, folder, commands):
    path = folder(beside(name))
    for command in commands.values():
        with pytest.warns(UserWarning, match=f"does not read {name} of its files"):
            command(path)


@torch.no_grad()
def test_the_file_says_whether_the_head_is_tied(folder, commands, tmp_path, web):
    """The configuration says tied, the file has two matrices: transformers keeps both, and so does every command."""
    path = folder(tie_word_embeddings=True)
    model, _ = commands["load"](path)
    head, inside = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert not torch.equal(head, inside) and not model.config.tie_word_embeddings
    commands["compress"](path)
    small, _ = ctp.load(tmp_path / "out", device="cpu")
    assert torch.equal(small.get_output_embeddings().weight, head)
    assert torch.equal(small.get_input_embeddings().weight, inside)


def test_what_is_not_compressed_does_not_grow(folder, commands, tmp_path):
    """bfloat16 weights that half precision cannot hold stay two bytes long, compressed and exported."""
    path = folder(lambda tensors: {n: (t * 1e-5).bfloat16() for n, t in tensors.items()})
    commands["compress"](path)
    rest = load_file(tmp_path / "out" / "rest.safetensors")
    assert {t.dtype for t in rest.values() if t.is_floating_point()} <= {torch.bfloat16, torch.float16}
    ctp.export(tmp_path / "out", tmp_path / "dense", "dense")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("m", "dense")]
    assert sizes[1] <= 1.05 * sizes[0]
