"""Real folders come in shapes: shards, pickles, tied heads or not, vocabularies wider than the tokenizer."""

import json
import os
import re

import pytest
import torch
from commands import refused, run_json
from conftest import VOCABULARY
from transformers import LlamaConfig, LlamaForCausalLM

import ctplab as ctp
from ctplab.models.weights import INDEX, weight_files

#: Single precision over a mean of some hundred targets.
SAME_NLL = 1e-5
EXACT = ("--device", "cpu")
"""As the model in memory, which is compared with what the commands make."""


def llama(tied: bool, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, intermediate_size=64, tie_word_embeddings=tied, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def nll_by_hand(model, windows) -> float:
    """Mean over all targets, one window at a time."""
    losses = []
    for window in windows:
        logits = model(window[None]).logits[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").tolist()
    return sum(losses) / len(losses)


def check_commands(capsys, folder, model, tokenizer):
    """``info`` counts the weights, ``score`` agrees with transformers, ``compress`` with compression in memory."""
    found = run_json(capsys, "info", folder)
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) and found["tag"] == "full"
    scored = run_json(capsys, "score", folder, "--windows", "3", "--seq-len", "64", *EXACT)["corpora"]["atlas-web"]
    windows = ctp.corpus("atlas-web", tokenizer, 64).test.windows[:3]
    assert scored["nll"] / scored["n_tokens"] == pytest.approx(nll_by_hand(model, windows), rel=SAME_NLL)
    out = folder.parent / "w4"
    run_json(capsys, "compress", folder, "--bits", "4", "--samples", "4", "--seq-len", "64", "--out", out, *EXACT)
    sample = ctp.corpus("atlas-web", tokenizer, 64).train.sample(4, 0)
    wanted, _ = ctp.compress(model, sample, ctp.CompressionSpec(bits=4))
    small, _ = ctp.load(out, device="cpu")
    assert torch.equal(small(windows).logits, wanted(windows).logits)
    assert run_json(capsys, "info", out)["tag"] == "w4"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", ["50GB", "100KB"])
def test_heads_and_shards(tied, shards, folder, tokenizer, capsys):
    model = llama(tied)
    model.save_pretrained(folder, max_shard_size=shards)
    assert (len(weight_files(folder)) > 1) == (shards == "100KB")
    check_commands(capsys, folder, model, tokenizer)


def test_a_vocabulary_wider_than_the_tokenizer(folder, tokenizer, capsys):
    """As Qwen's and Phi's: the matrices are padded to a round number of rows that no token has."""
    model = llama(tied=False, vocabulary=VOCABULARY + 100)
    model.save_pretrained(folder)
    check_commands(capsys, folder, model, tokenizer)
    common = ("--windows", "2", "--seq-len", "32")
    run_json(capsys, "score", folder, "--control", "random", "--tokens", "5", *common)
    run_json(capsys, "learn", folder, "--tokens", "4", "--steps", "2", "--seq-len", "32", "--batch", "2",
             "--out", folder.parent / "prompt")  # fmt: skip
    seen = run_json(capsys, "inspect", folder.parent / "prompt", "--model", folder, "--top", "2200")
    assert len(seen["tokens"]) == 4 and isinstance(seen["hard_prompt"], str)
    answers = run_json(capsys, "compare", "--full", folder, "--compressed", folder.parent / "w4", "A river")
    assert set(answers[0]["answers"]) >= {"full", "compressed"}


def test_other_formats_beside_the_weights_do_not_count(folder, tokenizer, capsys):
    """Mistral's folders hold the same weights twice: shards with an index, and ``consolidated.safetensors``."""
    model = llama(tied=False)
    model.save_pretrained(folder / "twice")
    model.save_pretrained(folder, max_shard_size="100KB")
    os.replace(folder / "twice" / "model.safetensors", folder / "consolidated.safetensors")
    check_commands(capsys, folder, model, tokenizer)


def test_pickles_are_not_read_but_a_line_converts_them(folder, tokenizer, capsys, monkeypatch):
    model = llama(tied=False)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    out = folder.parent / "out"
    commands = [("info",), ("score",), ("compress", "--bits", "4", "--out", out), ("latency",)]
    for name, *options in commands:
        line = refused(capsys, name, folder, *options)
        assert "pytorch_model.bin, a pickle, which is not read" in line
    assert not out.exists()
    told = re.search(r'python -c "(.*)"', line)
    assert told
    exec(told[1], {})
    check_commands(capsys, folder, model, tokenizer)


def test_folders_without_weights(folder, tokenizer, capsys):
    llama(tied=False).save_pretrained(folder, max_shard_size="100KB")
    lost = weight_files(folder)[1]
    lost.unlink()
    assert f"{lost.name} is missing" in refused(capsys, "score", folder)
    assert f"{lost.name} is missing" in refused(capsys, "info", folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": 3}))
    assert "no weight_map" in refused(capsys, "score", folder)
    for path in [folder / INDEX, *folder.glob("*.safetensors")]:
        path.unlink()
    assert "no safetensors file" in refused(capsys, "score", folder)
