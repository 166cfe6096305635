"""A model as a GGUF file, for llama.cpp and Ollama: half-precision matrices, single-precision vectors, nothing rounded
again. Soft tokens that stand in its vocabulary go along (``tokens``).

LLaMA-like models: llama and mistral (which llama.cpp runs as llama), qwen2, qwen3.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctplab.disk import whole_folder, write_text
from ctplab.errors import InputError
from ctplab.formats import checkpoint, gguf_vocabulary, tokens
from ctplab.formats.loading import load
from ctplab.models import Model, Tokenizer
from ctplab.models.loading import local_folder
from ctplab.progress import Progress, bar
from ctplab.text_files import read_json

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type -> llama.cpp's architecture."""
FILE = "model.gguf"
_HALF = 1
"""llama.cpp's number of the file type "mostly half precision"."""


def export_gguf(model: str | Path, out: Path, *, progress: Progress = bar) -> dict[str, Any]:
    """Write ``model`` (full, compressed, or with soft tokens) into the new folder ``out``: model.gguf, Modelfile.

    Raises InputError if llama.cpp would compute something else, or cut text otherwise, and leaves nothing behind.
    """
    if out.suffix == ".gguf":
        raise InputError(f"give a folder, not {out.name}: beside {FILE} it gets a Modelfile")
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it")
    home = local_folder(model)
    soft = read_json(home / tokens.MANIFEST) if tokens.is_export(home) else {}
    tag = soft.get("tag") or (
        checkpoint.read_manifest(home)["tag"] if (home / checkpoint.MANIFEST).exists() else "full"
    )
    loaded, tokenizer = load(home, device="cpu", dtype="float16")
    with whole_folder(out) as folder:
        facts = _write(loaded, tokenizer, soft, {"model": str(model), "tag": tag}, folder / FILE, progress)
        write_text(_modelfile(tokenizer, soft), folder / "Modelfile")
        if soft:
            shutil.copy(home / tokens.MANIFEST, folder / tokens.MANIFEST)
    return {"out": str(out), "format": "gguf", "tag": tag, "bytes": (out / FILE).stat().st_size, **facts}


def _write(
    model: Model, tokenizer: Tokenizer, soft: dict[str, Any], about: dict[str, str], path: Path, progress: Progress
) -> dict[str, Any]:
    from gguf import GGUFWriter

    architecture, notes = _architecture(model.config)
    writer = GGUFWriter(path, architecture)
    try:
        writer.add_name(Path(about["model"]).name)
        writer.add_file_type(_HALF)
        for key, value in about.items():
            writer.add_string(f"ctplab.{key}", value)
        _add_settings(writer, model, notes)
        _add_vocabulary(writer, tokenizer, model, soft)
        found = dict(_tensors(model, architecture))
        for name, tensor in found.items():
            kind = np.dtype(np.float16 if tensor.ndim > 1 else np.float32)
            writer.add_tensor_info(name, tensor.shape, kind, tensor.numel() * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in progress(found.values(), total=len(found), label="gguf"):
            writer.write_tensor_data(tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32).numpy())
    finally:
        writer.close()
    return {"architecture": architecture, "tensors": len(found), "warnings": notes}


def _architecture(config: Any) -> tuple[str, list[str]]:
    """llama.cpp's name, and what a user should know. Raises InputError if it would compute something else."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"models of the type {kind} are not written as GGUF; {', '.join(ARCHITECTURES)} are")
    rope = config.rope_parameters
    scaling = rope.get("rope_type", "default")
    if scaling not in ("default", "linear") and not (scaling == "llama3" and ARCHITECTURES[kind] == "llama"):
        raise InputError(f"positions scaled by the rule {scaling!r} are not written as GGUF")
    if config.hidden_act != "silu" or rope.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"this {kind} model differs from the one that llama.cpp knows (activation or rotary part)")
    window = _window(config)
    notes = [] if window is None else [f"the context is cut to the attention window, {window}: llama.cpp has no window"]
    return ARCHITECTURES[kind], notes


def _window(config: Any) -> int | None:
    """The attention window if it is shorter than the context."""
    slides = any("sliding" in kind for kind in getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    short = window is not None and window < config.max_position_embeddings
    return window if short and (slides or config.model_type == "mistral") else None


def _add_settings(writer: Any, model: Model, notes: list[str]) -> None:
    from gguf import RopeScalingType

    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_window(config) or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, model: Model, soft: dict[str, Any]) -> None:
    words = gguf_vocabulary.of(tokenizer, model.config.vocab_size)
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.rule)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.space_first)
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    place = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    front, behind = whole[:place], whole[place + len(plain) :]
    if front not in ([], [tokenizer.bos_token_id], soft.get("ids")) or behind not in ([], [tokenizer.eos_token_id]):
        raise InputError("the tokenizer writes more around a text than a start and an end token, which GGUF cannot say")
    writer.add_add_bos_token(front == [tokenizer.bos_token_id])
    writer.add_add_eos_token(bool(behind))
    for role in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    ends = model.generation_config.eos_token_id
    for end in ends if isinstance(ends, list) else ():
        if end != tokenizer.eos_token_id:
            writer.add_eot_token_id(end)
            break
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    if soft:
        writer.add_array("tokenizer.ggml.suppress_tokens", soft["silent"])
        writer.add_string("ctplab.soft_tokens", json.dumps({key: soft[key] for key in ("tokens", "prepend")}))


def _tensors(model: Model, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as llama.cpp wants them."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    config = model.config
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(MODEL_ARCH(kind), config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"{name} has no place in llama.cpp's {architecture}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} does not fit into half precision")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        yield found, interleaved(tensor, heads) if architecture == "llama" and heads else tensor
    if config.rope_parameters.get("rope_type") == "llama3":
        inverse = model.model.rotary_emb.inv_freq.float()
        plain = config.rope_parameters["rope_theta"] ** (-torch.arange(len(inverse)) / len(inverse))
        yield "rope_freqs.weight", plain / inverse


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows (heads · d, ...) of queries or keys, rotated in halves by transformers and in pairs by llama.cpp's llama."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _modelfile(tokenizer: Tokenizer, soft: dict[str, Any]) -> str:
    """Ollama's recipe. Its templates are not Jinja: of chat templates only ChatML is written over."""
    front = "".join(soft["tokens"]) if soft.get("prepend") == "always" else ""
    chatml = "<|im_start|>" in (tokenizer.chat_template or "")
    return f'FROM ./{FILE}\nTEMPLATE """{front}{_CHATML if chatml else "{{ .Prompt }}"}"""\n' + (
        "PARAMETER stop <|im_end|>\n" if chatml else ""
    )


_CHATML = """{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
