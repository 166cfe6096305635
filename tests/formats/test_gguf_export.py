"""GGUF files that we write: transformers' own reader gives our logits. llama.cpp reads them in interop/."""

import json

import pytest
import torch
import transformers
from commands import refused, run_json
from conftest import GROUPED, SHAPE, VOCABULARY, from_config, tiny
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats import gguf_export, gguf_vocabulary
from ctplab.progress import silent

gguf = pytest.importorskip("gguf")
#: What differs from a family's usual settings: everything that has a tensor or a key of its own.
FAMILIES = {
    "LlamaConfig": {"tie_word_embeddings": False},  # with biases in interop/: transformers drops them
    "MistralConfig": {"sliding_window": None, "tie_word_embeddings": True},
    "Qwen2Config": {"vocab_size": VOCABULARY + 8, "tie_word_embeddings": True},  # its tokenizer adds a token
    "Qwen3Config": {"head_dim": 128, "tie_word_embeddings": False},  # transformers reads no other
}
#: The same half-precision values, computed in fp32 by the same code: only the order of sums may differ.
SAME = 1e-4


def half_exact(config):
    """A random model whose values half precision holds exactly; norms and biases are random too."""
    model = from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
            parameter.copy_(parameter.half())
    return model


def stored(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fields(folder):
    reader = gguf.GGUFReader(folder / gguf_export.FILE)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_transformers_reads_our_logits(family, tokenizer, tmp_path):
    model = half_exact(getattr(transformers, family)(**SHAPE | GROUPED | FAMILIES[family]))
    tokenizer = AutoTokenizer.from_pretrained(stored(model, tokenizer, tmp_path / "m"))
    found = gguf_export.export_gguf(tmp_path / "m", tmp_path / "g", progress=silent)
    assert found["tag"] == "full" and found["bytes"] == (tmp_path / "g" / "model.gguf").stat().st_size
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "g", gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(24).view(2, 12) * 7 % 2000 + 5
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=SAME, atol=SAME)
    about, tensors = fields(tmp_path / "g")
    assert ("output.weight" in tensors) != model.config.tie_word_embeddings
    kinds = {t.tensor_type.name for t in tensors.values() if t.name.endswith("weight") and len(t.shape) > 1}
    assert kinds == {"F16"} and tensors["output_norm.weight"].tensor_type.name == "F32"
    assert about["tokenizer.ggml.add_bos_token"] == (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


@torch.no_grad()
def test_the_compressed_model_with_its_soft_tokens(tmp_path):
    home, saved = data_dir() / "w4-s55", ctp.load_prompt(data_dir() / "prompt")
    soft = ctp.export_tokens(saved, home, tmp_path / "t")
    found = gguf_export.export_gguf(tmp_path / "t", tmp_path / "g", progress=silent)
    assert found["tag"] == "w4-s55" and found["architecture"] == "llama"
    about, tensors = fields(tmp_path / "g")
    assert about["tokenizer.ggml.pre"] == "smollm" and about["tokenizer.ggml.add_bos_token"] is False
    assert about["tokenizer.ggml.suppress_tokens"] == soft["silent"]
    assert [about["tokenizer.ggml.tokens"][i] for i in soft["ids"]] == soft["tokens"]
    kinds = about["tokenizer.ggml.token_type"]
    assert {kinds[i] for i in soft["ids"]} == {gguf.TokenType.CONTROL}
    assert {kinds[i] for i in range(2148, 2176)} == {gguf.TokenType.UNUSED}
    assert json.loads(about["ctplab.soft_tokens"])["tokens"] == soft["tokens"]
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    rows = torch.from_numpy(tensors["token_embd.weight"].data[soft["ids"]].copy())
    assert torch.equal(rows, saved.prefix.rows.half())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "g", gguf_file="model.gguf", dtype=torch.float32)
    ours, again = ctp.load(tmp_path / "t", device="cpu")
    ids = again("The capital of France is", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=SAME, atol=SAME)
    template = (tmp_path / "g" / "Modelfile").read_text()
    assert template.startswith('FROM ./model.gguf\nTEMPLATE """<|soft_0|><|soft_1|>') and "{{ .Prompt }}" in template
    # without a prompt: the compressed values themselves
    gguf_export.export_gguf(home, tmp_path / "plain", progress=silent)
    about, tensors = fields(tmp_path / "plain")
    assert about["tokenizer.ggml.add_bos_token"] is True and "tokenizer.ggml.suppress_tokens" not in about
    small, _ = ctp.load(home, device="cpu")
    want = small.model.layers[0].mlp.down_proj.weight.half()
    assert torch.equal(torch.from_numpy(tensors["blk.0.ffn_down.weight"].data.copy()), want)


def test_long_contexts(tokenizer, tmp_path):
    """Llama 3 divides slow frequencies by the factor and leaves fast ones; a window bounds the context."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    config = transformers.LlamaConfig(
        **SHAPE | {"hidden_size": 128, "max_position_embeddings": 512}, rope_parameters=rope
    )
    gguf_export.export_gguf(stored(from_config(config), tokenizer, tmp_path / "m"), tmp_path / "g", progress=silent)
    _, tensors = fields(tmp_path / "g")
    factors = tensors["rope_freqs.weight"].data
    assert factors.shape == (16,) and (factors[:-1] <= factors[1:] + 1e-5).all()  # quotients of fp32
    waves = 2 * torch.pi * 5e5 ** (torch.arange(16) / 16)
    assert factors[waves.numpy() < 64 / 4] == pytest.approx(1) and factors[waves.numpy() > 64] == pytest.approx(8)
    config = transformers.LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    )
    gguf_export.export_gguf(stored(from_config(config), tokenizer, tmp_path / "l"), tmp_path / "h", progress=silent)
    about, _ = fields(tmp_path / "h")
    assert (about["llama.rope.scaling.type"], about["llama.rope.scaling.factor"]) == ("linear", 2.0)
    config = transformers.MistralConfig(**SHAPE, **GROUPED, sliding_window=32)
    home = stored(from_config(config), tokenizer, tmp_path / "s")
    found = gguf_export.export_gguf(home, tmp_path / "i", progress=silent)
    assert fields(tmp_path / "i")[0]["llama.context_length"] == 32 and "attention window, 32" in found["warnings"][0]


def byte_level(**changes):
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], **changes))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return backend


def words(backend, size=3):
    return gguf_vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=backend), size)


def test_rules_that_cut_text_have_names():
    assert words(byte_level()).rule == "gpt-2" and words(byte_level()).merges == ["a b"]
    for rule, pattern in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}")):
        regex = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + pattern + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        backend = byte_level(ignore_merges=rule == "llama-bpe")
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        assert words(backend).rule == rule


def test_sentencepiece_scores_keep_the_order_of_merges():
    vocabulary = {"<unk>": 0, "<0x41>": 1, "\u2581": 2, "a": 3, "b": 4, "ab": 5, "\u2581ab": 6}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[("a", "b"), ("\u2581", "ab")],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.ByteFallback()
    found = words(backend, 8)
    assert (found.kind, found.space_first, found.merges) == ("llama", True, None)
    assert found.scores[5] > found.scores[6] > found.scores[3]
    kinds = gguf.TokenType
    assert found.types[:3] == [kinds.UNKNOWN, kinds.BYTE, kinds.NORMAL] and found.types[7] == kinds.UNUSED


def test_tokenizers_without_words_are_refused():
    other = byte_level()
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    lower = byte_level()
    lower.normalizer = normalizers.Lowercase()
    for backend, size, reason in (
        (other, 3, "no rule that cuts text"),
        (lower, 3, "changes text"),
        (byte_level(ignore_merges=True), 3, "merges otherwise"),
        (byte_level(byte_fallback=True), 3, "does not mark spaces"),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), 1, "type WordLevel"),
        (byte_level(), 2, "has 3 tokens, the model 2 rows"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            words(backend, size)


def test_bad_input_is_one_line_and_leaves_nothing(tokenizer, tmp_path, capsys):
    opt = stored(tiny("opt"), tokenizer, tmp_path / "opt")
    odd = transformers.LlamaConfig(**SHAPE, hidden_act="gelu")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    far = transformers.LlamaConfig(**SHAPE, rope_parameters=yarn)
    big = half_exact(transformers.LlamaConfig(**SHAPE))
    with torch.no_grad():
        big.model.embed_tokens.weight[0, 0] = 1e5
    for home, reason in (
        (opt, "type opt are not written"),
        (stored(from_config(odd), tokenizer, tmp_path / "odd"), "differs from the one"),
        (stored(from_config(far), tokenizer, tmp_path / "far"), "rule 'yarn'"),
        (stored(big, tokenizer, tmp_path / "big"), "embed_tokens.weight does not fit into half precision"),
    ):
        assert reason in refused(capsys, "export", "model", home, "--to", "gguf", "--out", tmp_path / "g")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("g")]
    atlas = data_dir() / "model"
    said = refused(capsys, "export", "model", atlas, "--to", "gguf", "--out", tmp_path / "x.gguf")
    assert "give a folder" in said
    found = run_json(capsys, "export", "model", "atlas", "--to", "gguf", "--out", tmp_path / "g")
    assert (found["format"], found["tag"]) == ("gguf", "full")
    assert "exists already" in refused(capsys, "export", "model", atlas, "--to", "gguf", "--out", tmp_path / "g")


def test_another_end_of_turn_goes_along(tokenizer, tmp_path):
    model = half_exact(transformers.LlamaConfig(**SHAPE, **GROUPED))
    model.generation_config.eos_token_id = [2, 7]
    home = stored(model, tokenizer, tmp_path / "m")
    chat = AutoTokenizer.from_pretrained(home)
    chat.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    chat.save_pretrained(home)
    gguf_export.export_gguf(home, tmp_path / "g", progress=silent)
    about, _ = fields(tmp_path / "g")
    assert (about["tokenizer.ggml.eos_token_id"], about["tokenizer.ggml.eot_token_id"]) == (2, 7)
    assert about["tokenizer.chat_template"] == chat.chat_template and len(about["tokenizer.ggml.tokens"]) == VOCABULARY
    assert "<|im_start|>assistant" in (tmp_path / "g" / "Modelfile").read_text()
