"""Blocks that run again in the backward pass: the same gradient, with the activations of only one block in memory."""

import json

import accelerate
import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config, tiny
from live import peak_bytes

import ctplab as ctp
from ctplab.cli import main
from ctplab.learning.objective import mixed_loss
from ctplab.learning.recompute import recompute
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import halves, logits_after

IDS = torch.arange(3 * 20).view(3, 20) * 7 % 2048


def gradient(model, ids=IDS, k=6):
    """(loss, gradient of E) of one step of learning."""
    d = model.get_input_embeddings().weight.shape[1]
    E = (torch.randn(k, d, generator=torch.Generator().manual_seed(1)) * 0.3).requires_grad_(True)
    cut = halves(model)
    states = cut.states(compile_rows(model, E), ids)[:, :-1].flatten(0, 1)
    loss = mixed_loss(states, cut.head, model.config.vocab_size, ids[:, 1:].flatten())
    loss.backward()
    return loss.detach(), E.grad


def assert_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), "recomputation is the same arithmetic again"


def test_loss_and_gradient_are_the_same_bits(model):
    assert_same(gradient(model), gradient(recompute(model)))


def test_a_sliding_window_is_no_exception():
    model = from_config(transformers.Gemma2Config(**MORE_FAMILIES["Gemma2Config"]))
    assert_same(gradient(model), gradient(recompute(model)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_through_packed_weights(dtype, tokenizer, tmp_path, quiet):
    small, report = ctp.compress(tiny("llama"), IDS, ctp.CompressionSpec(bits=4, group_size=8), **quiet)
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path, device="cpu", dtype=dtype, packed=True)
    dense, _ = ctp.load(tmp_path, device="cpu", dtype=dtype)
    plain = gradient(packed)
    assert_same(plain, gradient(recompute(packed)))
    _, reference = gradient(dense)
    # the same weights multiplied in another order: fp32's, or bf16's 8 bits through two blocks
    tolerance = 1e-4 if dtype == "float32" else 0.05
    assert (plain[1] - reference).norm() < tolerance * reference.norm()


def test_learning_gives_the_same_curve(web, quiet):
    spec = ctp.PromptSpec(tokens=5, steps=4, batch=4, lr=0.05, seed=1)
    plain = ctp.learn(tiny("llama"), web.train, web.validation, spec, **quiet)
    again = ctp.learn(recompute(tiny("llama")), web.train, web.validation, spec, **quiet)
    assert [s.loss for s in plain.steps] == [s.loss for s in again.steps]
    assert torch.equal(plain.prefix.rows, again.prefix.rows)


def test_activations_of_one_block_are_enough():
    """What every further block adds to the peak: its input, instead of all it computes."""
    shape = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    ids = torch.arange(4 * 64).view(4, 64) * 7 % 256

    def grown(models):
        peaks = [peak_bytes(lambda model=model: gradient(model, ids)) for model in models]
        return (peaks[1] - peaks[0]) / 4

    models = [from_config(transformers.LlamaConfig(**shape, num_hidden_layers=n, pad_token_id=0)) for n in (2, 6)]
    everything = grown(models)
    assert grown([recompute(model) for model in models]) < 0.2 * everything


def test_no_gradient_no_recomputation(llama):
    before = logits_after(llama, [], IDS)
    assert torch.equal(logits_after(recompute(llama), [], IDS), before)


def test_a_text_behind_a_prefix_leaves_no_keys(llama):
    """The cache that a pass was given holds the prefix and nothing else afterwards."""
    from ctplab.prompts.cache import Behind

    with torch.no_grad():
        kv = compile_rows(llama, torch.randn(5, 32))
        cache = Behind(kv, llama.config)
        llama(input_ids=IDS, attention_mask=torch.ones(3, 25, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert [layer.keys.shape[2] for layer in cache.layers] == [5, 5]


def test_under_the_hooks_of_a_model_on_several_devices(llama):
    """accelerate moves every module's inputs to its device by hooks; forced here, where there is one device."""
    plain = gradient(llama)
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    spread = accelerate.dispatch_model(llama, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert_same(plain, gradient(recompute(spread)))


def test_the_command_line_for_big_models(tokenizer, tmp_path, capsys, quiet):
    small, report = ctp.compress(tiny("llama"), IDS, ctp.CompressionSpec(bits=4, group_size=8), **quiet)
    ctp.save(small, tmp_path / "small", tokenizer, report, "tiny")
    (tmp_path / "text.txt").write_text("\n\n".join(f"A river number {n} is long." for n in range(400)))
    text = ["--corpus", f"file:{tmp_path / 'text.txt'}", "--dtype", "bfloat16", "--packed", "--json"]
    learn = [
        "learn",
        str(tmp_path / "small"),
        "--tokens",
        "4",
        "--steps",
        "3",
        "--batch",
        "4",
        "--seq-len",
        "24",
        *text,
    ]
    score = ["score", str(tmp_path / "small"), "--prompt", str(tmp_path / "a"), "--seq-len", "24", *text]
    assert main([*learn, "--device", "auto", "--recompute", "--out", str(tmp_path / "a")]) == 0
    assert main([*learn, "--device", "cpu", "--out", str(tmp_path / "b")]) == 0
    a, b = (ctp.load_prompt(tmp_path / name).prefix.rows for name in "ab")
    assert torch.equal(a, b)
    capsys.readouterr()
    assert main([*score, "--device", "auto"]) == 0 and main([*score, "--device", "cpu"]) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert one == two
    assert main(["score", "atlas", "--packed"]) == 2
    assert "not packed" in capsys.readouterr().err
