"""Prompts to and from other programs. PEFT itself is the reference: logits are equal both ways."""

import json
import pickle

import pytest
import torch
from conftest import any_tiny, tiny
from safetensors.torch import load_file, save_file

import ctplab as ctp
from ctplab.formats import exchange, peft, prompt_file
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import logits_after

K = 7
# PEFT calls something that transformers is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ids = torch.arange(24).view(2, 12) * 7 % 2000 + 5


def prompt_of(model, tokenizer, **info) -> prompt_file.SavedPrompt:
    rows = prefix.random_rows(model, K, name="soft")
    return prompt_file.SavedPrompt(
        rows, rows, {"base": "tiny", "tag": "w4", **prompt_file.made_for(model, tokenizer), **info}
    )


@torch.no_grad()
def arm_logits(model, p) -> torch.Tensor:
    return logits_after(model, compile_prefix(model, p), ids)


@torch.no_grad()
def peft_logits(model, folder) -> torch.Tensor:
    peft = pytest.importorskip("peft", reason="needs the extra 'baselines'")
    wrapped = peft.PeftModel.from_pretrained(model, folder)
    found = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
    return found


def test_peft_gives_the_same_logits_for_our_rows(model, tokenizer, tmp_path):
    """All five families; OPT's word_embed_proj_dim (16) differs from its hidden size (32), as OPT-350m's does."""
    prompt = prompt_of(model, tokenizer)
    want = arm_logits(model, prompt.prefix)
    found = exchange.export_prompt(prompt, tmp_path, model, "peft")
    assert (found["k"], found["bytes"]) == (K, (tmp_path / "adapter_model.safetensors").stat().st_size)
    # fp32; PEFT concatenates rows where we compile them: two orders of summation
    torch.testing.assert_close(peft_logits(model, tmp_path), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "neox", "gpt2", "Gemma2Config", "Qwen3Config"])
def test_peft_gives_the_same_logits_for_our_keys_and_values(family, tokenizer, tmp_path):
    model = any_tiny(family)
    prompt = prompt_of(model, tokenizer)
    want = arm_logits(model, prompt.prefix)
    exchange.export_prompt(prompt, tmp_path, model, "kv")
    torch.testing.assert_close(peft_logits(model, tmp_path), want, rtol=1e-5, atol=1e-5)  # the same keys and values


def rows_a_pass(model) -> list[int]:
    """Filled as the model runs: how many positions each forward pass computes."""
    found: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: found.append(next(t.shape[1] for t in (*args, *kwargs.values()) if torch.is_tensor(t))),
        with_kwargs=True,
    )
    return found


@torch.no_grad()
def test_keys_and_values_start_a_text_without_computing_the_prompt(llama, tokenizer, tmp_path):
    """By the ways that a user takes: PEFT loads the folder; we import it, load the prompt, and generate."""
    library = pytest.importorskip("peft", reason="needs the extra 'baselines'")
    prompt = prompt_of(llama, tokenizer)
    few = {"max_new_tokens": 4, "start": "none"}  # as the text is written below
    want = ctp.generate(ctp.Arm("soft", llama, prompt.prefix), tokenizer, ["hello there"], **few)[0].text
    exchange.export_prompt(prompt, tmp_path / "kv", llama, "kv")
    text = tokenizer("hello there", add_special_tokens=False, return_tensors="pt")
    n = text["input_ids"].shape[1]
    exchange.import_prompt(tmp_path / "kv", tmp_path / "p", llama, tokenizer)
    imported = ctp.load_prompt(tmp_path / "p").prefix
    mine, theirs = tiny("llama"), tiny("llama")
    passes = rows_a_pass(mine)
    assert ctp.generate(ctp.Arm("soft", mine, imported), tokenizer, ["hello there"], **few)[0].text == want
    assert passes == [1, n, 1, 1, 1]  # the first finds out which heads and layers the model has
    loaded = library.PeftModel.from_pretrained(theirs, tmp_path / "kv")
    passes = rows_a_pass(theirs)
    out = loaded.generate(**text, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0, n:], skip_special_tokens=True) == want
    assert passes == [n, 1, 1, 1]


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("kind", ["prompt", "prefix", "cartridge"])
def test_what_peft_made_gives_its_logits_here(family, kind, tokenizer, tmp_path):
    """A prompt that PEFT itself initialised, moved off its start, and saved."""
    peft = pytest.importorskip("peft", reason="needs the extra 'baselines'")
    model = tiny(family)
    config = {
        "prompt": lambda: peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=K, token_dim=embeddings(model).shape[1]
        ),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=K),
        "cartridge": lambda: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=K),
    }[kind]()
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    want = peft_logits(model, tmp_path / "peft")
    info = exchange.import_prompt(tmp_path / "peft", tmp_path / "p", model, tokenizer, base="tiny")
    assert info["imported_from"] == ("peft" if kind == "prompt" else "kv") and info["k"] == K
    prompt = ctp.load_prompt(tmp_path / "p")
    torch.testing.assert_close(arm_logits(model, prompt.prefix), want, rtol=1e-4, atol=1e-4)
    assert "claimed at import" in ctp.attach(prompt, model, tokenizer)[0]


@torch.no_grad()
def test_packing_is_pefts_and_is_undone(llama):
    kv = compile_prefix(llama, prefix.random_rows(llama, K))
    packed = peft.pack(kv)
    utils = pytest.importorskip("peft.tuners.cartridge.utils", reason="needs the extra 'baselines'")
    theirs = utils.prompt_embeddings_from_past_key_values(tuple(kv), num_virtual_tokens=K)
    assert torch.equal(packed, theirs)
    back = peft.unpack(packed, len(kv), kv[0][0].shape[1])
    assert all(torch.equal(a, b) for x, y in zip(kv, back.kv, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("to", ["peft", "kv"])
def test_our_own_export_comes_back_with_its_origin(llama, tokenizer, tmp_path, to):
    prompt = prompt_of(llama, tokenizer)
    exchange.export_prompt(prompt, tmp_path / "out", llama, to)
    info = exchange.import_prompt(tmp_path / "out", tmp_path / "back", llama, tokenizer, base="someone's name")
    assert (info["base"], info["tag"], info["claimed"]) == ("tiny", "w4", None)
    back = ctp.load_prompt(tmp_path / "back")
    assert torch.equal(arm_logits(llama, back.prefix), arm_logits(llama, prompt.prefix))
    if to == "peft":
        assert torch.equal(back.prefix.rows, prompt.prefix.rows)
    else:
        with pytest.raises(ctp.InputError, match="use to='kv'"):
            exchange.export_prompt(back, tmp_path / "x", llama, "embeds")


@torch.no_grad()
def test_embeds_before_the_texts_own_embeddings_are_the_arm(model, tokenizer, tmp_path):
    """What vLLM is given (prompt and text embeddings joined), run by transformers: vLLM needs a GPU."""
    prompt = prompt_of(model, tokenizer)
    exchange.export_prompt(prompt, tmp_path, model, "embeds")
    E = load_file(tmp_path / "prompt_embeds.safetensors")["prompt_embeds"]
    joined = torch.cat([E.expand(2, -1, -1), embed(model, ids)], 1)
    got = model(inputs_embeds=joined, use_cache=False).logits[:, K:]
    torch.testing.assert_close(got, arm_logits(model, prompt.prefix), rtol=1e-4, atol=1e-4)


def test_the_papers_best_pth(llama, tokenizer, tmp_path):
    weight = torch.randn(K, 32)
    E = torch.nn.Embedding.from_pretrained(weight, freeze=False)
    optimizer = torch.optim.AdamW(E.parameters(), lr=1e-3)
    E(torch.arange(K)).sum().backward()
    optimizer.step()
    torch.save({"model": E.bfloat16().state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "best.pth")
    info = exchange.import_prompt(tmp_path / "best.pth", tmp_path / "p", llama, tokenizer, base="tiny")
    assert info["imported_from"] == "paper"
    assert torch.equal(ctp.load_prompt(tmp_path / "p").prefix.rows, E.weight.detach().float())


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (self.folder.mkdir, ())


def test_bad_pth_files_are_one_line_and_never_run(llama, tokenizer, tmp_path):
    path, owned = tmp_path / "best.pth", tmp_path / "owned"
    torch.save({"model": {"weight": torch.zeros(K, 32)}}, path)
    whole = path.read_bytes()
    torch.save({"model": {"weight": torch.zeros(K, 32)}, "x": Evil(owned)}, path)
    evil = path.read_bytes()
    contents = {"evil": evil, "pickle": pickle.dumps(Evil(owned)), "cut": whole[:100], "empty": b"", "text": b"hello"}
    for name, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(ctp.InputError) as caught:
            exchange.import_prompt(path, tmp_path / "p", llama, tokenizer)
        assert "\n" not in str(caught.value), name
    for content, reason in (
        ([1, 2], "no best.pth"),
        ({"model": {}}, "no best.pth"),
        ({"model": {"weight": "a"}}, "no best.pth"),
        ({"model": {"weight": torch.zeros(K, 31)}}, r"takes \(k, 32\)"),
        ({"model": {"weight": torch.zeros(K)}}, r"takes \(k, 32\)"),
        ({"model": {"weight": torch.zeros(0, 32)}}, "empty"),
        ({"model": {"weight": torch.full((K, 32), torch.nan)}}, "NaN"),
    ):
        torch.save(content, path)
        with pytest.raises(ctp.InputError, match=reason):
            exchange.import_prompt(path, tmp_path / "p", llama, tokenizer)
    assert not owned.exists() and not (tmp_path / "p").exists()


def test_bad_peft_folders_are_one_line(llama, tokenizer, tmp_path):
    folder = tmp_path / "peft"
    exchange.export_prompt(prompt_of(llama, tokenizer), folder, llama, "peft")
    (folder / exchange.SIDECAR).unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")

    def refused() -> str:
        with pytest.raises(ctp.InputError) as caught:
            exchange.import_prompt(folder, tmp_path / "p", llama, tokenizer)
        return str(caught.value)

    for changes, reason in (
        ({"peft_type": "LORA"}, "type LORA; prompts are"),
        ({"peft_type": ["LORA"]}, "prompts are"),
        ({"num_virtual_tokens": 8}, "does not fit"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 3}, "is not 2 x 3 layers"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": "x"}, "damaged"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 2, "num_attention_heads": 2}, "other layers or heads"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        assert reason in refused(), changes
    (folder / "adapter_config.json").write_text("[]")
    assert "holds no object" in refused()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": tensors["prompt_embeddings"] / 0}, folder / "adapter_model.safetensors")
    assert "NaN" in refused()
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(1))
    assert "damaged" in refused()
    (folder / "adapter_model.safetensors").unlink()
    assert "save the adapter as safetensors" in refused()
    assert not (tmp_path / "p").exists()


def test_what_is_no_prompt_is_said(llama, tokenizer, tmp_path):
    prompt = prompt_of(llama, tokenizer)
    prompt_file.write(prompt.prefix, None, prompt.info, tmp_path / "p")
    exchange.export_prompt(prompt, tmp_path / "peft", llama, "peft")
    for path, reason in (
        (tmp_path / "nowhere", "no prompt at"),
        (tmp_path / "p", "a ctplab prompt already"),
        (tmp_path / "p" / "prompt.safetensors", "give the folder"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            exchange.import_prompt(path, tmp_path / "x", llama, tokenizer)
    with pytest.raises(ctp.InputError, match="is peft, not paper"):
        exchange.import_prompt(tmp_path / "peft", tmp_path / "x", llama, tokenizer, source="paper")
    with pytest.raises(ctp.InputError, match="known are peft, kv and embeds"):
        exchange.export_prompt(prompt, tmp_path / "x", llama, "gguf")


def test_layers_of_different_shapes_do_not_fit_pefts_format():
    kv = [(torch.zeros(1, heads, K, 8), torch.zeros(1, heads, K, 8)) for heads in (2, 4)]
    with pytest.raises(ctp.InputError, match="different shapes"):
        peft.pack(kv)
