"""Tiny GGUF files, written as llama.cpp's converter lays them out, and the models that they must give."""

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from conftest import VOCABULARY, from_config
from transformers import AutoTokenizer

from ctplab.disk import data_dir
from ctplab.formats.gguf_checks import ROPE

BAR = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
#: A page on which tokenizers part ways: digits beside spaces, runs of spaces, code, contractions, scripts, emoji.
MIXED = """In 2025  there were 1,234,567 cats; 3 of them (0.5%) didn't care.   Don't you think we'll see?
\tdef f(x_1: float) -> int:
        return x_1**2 + 10**-3  # 100% sure

Café naïve über straße; Привет, мир! 東京は日本の首都です。 مرحبا Ⅷ ½ ²
Emoji: 🙂🚀 and “quotes” — dashes … I'M SHOUTING, they'VE said.

The river, the rivers, the river's; a  5, a   77 and x=3.14e-10.
https://example.org/a_b?c=d&e=%20f   \t end of line
\n\n
Last  line with trailing spaces   """

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
TOKENIZER = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.eos_token_id": 2}
LONG = {"max_position_embeddings": 16384, "tie_word_embeddings": True}
GEMMA = COMMON | {"head_dim": 256, "num_hidden_layers": 6}  # Gemma 3: five blocks with a window, one without
#: Name of a family here -> (configuration class, its settings, llama.cpp's word for the architecture).
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", COMMON | {"tie_word_embeddings": False}, "llama"),
    "llama-tied": ("LlamaConfig", COMMON | {"tie_word_embeddings": True, "rope_theta": 5e5}, "llama"),
    "llama3": ("LlamaConfig", COMMON | {"head_dim": 64, "rope_parameters": LLAMA3, **LONG}, "llama"),
    "qwen2": ("Qwen2Config", COMMON | {"tie_word_embeddings": True, "rope_theta": 1e6}, "qwen2"),
    "qwen3": ("Qwen3Config", COMMON | {"head_dim": 128, "tie_word_embeddings": False}, "qwen3"),
    "gemma2": ("Gemma2Config", GEMMA | {"sliding_window": 16}, "gemma2"),
    "gemma3": ("Gemma3TextConfig", GEMMA | {"sliding_window": 16}, "gemma3"),
}


def model_of(family: str) -> Any:
    """A random model; norms and biases are random too, so that a wrong one shows."""
    kind, settings, _ = FAMILIES[family]
    model = from_config(getattr(transformers, kind)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


def _interleaved(heads: int, rows: int) -> torch.Tensor:
    """Where the rows of LLaMA's queries and keys stand in a file: both halves of a head take turns."""
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def write(
    path: Path, family: str, kind: str = "Q8_0", *, change: Any = None, tokenizer: Any = None, **extra: Any
) -> Any:
    """Write a random model of ``family`` to ``path``, matrices as ``kind``, and return the model of those values.

    ``extra``: settings to add, or to leave out (None). ``change(tensors)``: last changes to name -> (array, type).
    """
    model = model_of(family)
    architecture = FAMILIES[family][2]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (_settings(model.config, architecture) | extra).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    (tokenizer or byte_tokenizer)(writer)
    reference = copy.deepcopy(model)
    tensors = {}
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, parameter in reference.named_parameters():
        stored = names.get_name(name, (".weight", ".bias"))
        order = torch.arange(len(parameter))
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            config = model.config
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            order = _interleaved(heads, len(parameter))
        shift = 1.0 if architecture.startswith("gemma") and "norm" in name else 0.0  # stored as what it multiplies by
        values = parameter[order].numpy() + np.float32(shift)
        type_ = gguf.GGMLQuantizationType[kind if parameter.ndim == 2 else "F32"]
        packed = gguf.quantize(values, type_)
        tensors[stored] = packed, type_
        parameter.data[order] = torch.from_numpy(gguf.dequantize(packed, type_).astype(np.float32)) - shift
    if model.config.rope_parameters.get("rope_type") == "llama3":
        plain = model.config.rope_parameters["rope_theta"] ** -(np.arange(0, 64, 2) / 64)
        factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
        tensors[ROPE] = factors, gguf.GGMLQuantizationType.F32
    if change:
        change(tensors)
    for name, (packed, type_) in tensors.items():
        writer.add_tensor(name, packed, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return reference


def _settings(config: Any, architecture: str) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    settings = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
    }
    if architecture == "llama":
        settings["rope.dimension_count"] = head
    if head != config.hidden_size // config.num_attention_heads:
        settings |= {"attention.key_length": head, "attention.value_length": head}
    if architecture.startswith("gemma"):
        settings["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        settings["attn_logit_softcapping"] = config.attn_logit_softcapping
        settings["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in settings.items()} | TOKENIZER


def byte_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The embedded model's: it cuts digits off one by one, as SmolLM's does."""
    stored = json.loads((data_dir() / "model" / "tokenizer.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "model")
    tokens = tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    control = {token["content"] for token in stored["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in control else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")


def with_turns(writer: gguf.GGUFWriter) -> None:
    """As :func:`byte_tokenizer`, with ``<end_of_turn>`` for the last token and a template that uses it."""
    byte_tokenizer(writer)
    fields = writer.kv_data[0]
    last = fields["tokenizer.ggml.tokens"].value[-1]
    fields["tokenizer.ggml.tokens"].value[-1] = "<end_of_turn>"
    fields["tokenizer.ggml.token_type"].value[-1] = gguf.TokenType.CONTROL
    merges = [m for m in fields["tokenizer.ggml.merges"].value if m.replace(" ", "") != last]
    fields["tokenizer.ggml.merges"].value[:] = merges
    fields["tokenizer.chat_template"].value = "{% for m in messages %}{{ m['content'] }}<end_of_turn>{% endfor %}"


def pieces(prefix: bool = True) -> Any:
    """A sentencepiece tokenizer learned on :data:`MIXED`: bars for spaces, bytes for what is unknown.

    ``prefix``: with a bar in front of the text.
    """
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend(BAR)] if prefix else []
    words = [BAR + word for word in MIXED.split()]  # merges stay inside words, as sentencepiece's do
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", BAR)])
    return tokenizer


def sentencepiece(writer: gguf.GGUFWriter) -> None:
    """:func:`pieces`, each piece scored by when it was learned; unused tokens fill the vocabulary up."""
    tokenizer, kinds = pieces(), gguf.TokenType
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    types += [kinds.NORMAL] * (len(tokens) - len(types))
    empty = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"<unused{i}>" for i in range(empty))])
    writer.add_token_types([*types, *[kinds.UNUSED] * empty])
    writer.add_token_scores([-float(index) for index in range(VOCABULARY)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
