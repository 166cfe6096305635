"""What a GGUF file holds, and whether the model that transformers makes of it holds the same.

transformers drops tensors and settings that it does not know without a word. Here each setting of the architecture is
compared with the finished configuration, and each tensor's name with the parameters. LLaMA 3's long-context factors,
which it drops too, are taken over.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctplab.errors import InputError
from ctplab.models.loading import empty_model

#: Architectures in llama.cpp's words -> transformers' model type. All give llama.cpp's own logits ('make interop').
READABLE = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
#: The tensor of LLaMA 3's long-context factors.
ROPE = "rope_freqs.weight"
#: Settings that change nothing about what the model computes.
IDLE = {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}


@dataclass(frozen=True)
class Header:
    """``metadata``: all keys. ``tensors``: name -> type (``Q4_1``), in the file's order."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, str]
    rope_factors: tuple[float, ...]
    """What LLaMA 3 divides each rotary frequency by in long contexts; none in other files."""

    @property
    def architecture(self) -> str:
        """In llama.cpp's words."""
        return self.metadata["general.architecture"]


def read(file: Path) -> Header:
    """The header of ``file``. Raises InputError if it is no GGUF file, is damaged, or is of a kind not read here."""
    from gguf import GGUFReader

    if not file.is_file():
        raise InputError(f"no file at {file}; give a .gguf file")
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise InputError(f"{file} is no GGUF file")
        reader = GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        factors = [value for tensor in reader.tensors if tensor.name == ROPE for value in tensor.data.tolist()]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file leads numpy and the reader into
        raise InputError(f"{file} is damaged or cut off ({type(error).__name__})") from None
    header = Header(file, metadata, tensors, tuple(factors))
    _check_kind(header)
    return header


def _check_kind(header: Header) -> None:
    name, metadata = header.file.name, header.metadata
    if metadata.get("split.count", 1) > 1:
        raise InputError(f"{name} is one part of {metadata['split.count']}; join them with llama-gguf-split --merge")
    architecture = metadata.get("general.architecture")
    if architecture not in READABLE:
        raise InputError(f"{name}: the architecture {architecture!r} cannot be read; {', '.join(READABLE)} can")
    if metadata.get("general.type", "model") != "model":
        raise InputError(f"{name} holds no model but {metadata['general.type']!r}")


def _expected(config: Any) -> dict[str, Any]:
    """Setting of a GGUF file -> the value that the model of ``config`` has."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
    return {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.causal": True,
        "rope.dimension_count": head,
        "rope.freq_base": full["rope_theta"],
        "rope.freq_base_swa": sliding["rope_theta"],
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "expert_count": 0,
        "expert_used_count": 0,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 0,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None) or 0.0,
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None) or 0.0,
    }


def _stated(header: Header) -> dict[str, Any]:
    """The settings of the file, with what llama.cpp takes for those that it leaves out."""
    prefix = f"{header.architecture}."
    stated = {k.removeprefix(prefix): v for k, v in header.metadata.items() if k.startswith(prefix)}
    heads = stated.get("attention.head_count", 1)
    size = stated.get("embedding_length", 0) // heads if isinstance(heads, int) and heads else None
    usual = {"attention.key_length": size, "attention.value_length": size, "attention.head_count_kv": heads}
    usual |= {"rope.freq_base": 10000.0, "rope.scaling.type": "none"}
    usual |= {"rope.dimension_count": stated.get("attention.key_length", size)}
    if header.architecture == "gemma2":
        usual |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 4096}
    if header.architecture == "gemma3":
        usual |= {"rope.freq_base": 1e6, "rope.freq_base_swa": 10000.0}
    return usual | stated


def take_rope(header: Header, config: Any) -> None:
    """Give ``config`` LLaMA 3's long-context factors, which transformers skips.

    The file holds them worked out; of the four numbers behind them, LLaMA 3.1 to 3.3 share all but the largest factor.
    Raises InputError if other numbers are behind them: long contexts would come out wrong.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if set(header.rope_factors) <= {1.0}:
        return
    long = {"rope_type": "llama3", "factor": max(header.rope_factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters = {**config.rope_parameters, **long, "original_max_position_embeddings": 8192}
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    wanted = torch.tensor(header.rope_factors)
    if found.shape != wanted.shape or not torch.allclose(plain / found, wanted, rtol=1e-4):
        raise InputError(f"{header.file.name}: its rope factors ({ROPE}) are not LLaMA 3's and would be lost")


def check_settings(header: Header, config: Any) -> None:
    """Raise InputError if the file sets something that the model of ``config`` does not have."""
    name = header.file.name
    if config.model_type != READABLE[header.architecture]:
        raise InputError(f"{name}: transformers takes {header.architecture} for {config.model_type}")
    expected, stated = _expected(config), _stated(header)
    for key, value in stated.items():
        if key not in IDLE and (key not in expected or not _same(expected[key], value)):
            shown = f"{header.architecture}.{key} = {value}"
            raise InputError(f"{name} sets {shown}, which would be lost: transformers does not take it over")
    scale = getattr(config, "query_pre_attn_scalar", None)  # Gemma; llama.cpp takes the width of a head
    if scale is not None and scale != stated["attention.key_length"]:
        raise InputError(
            f"{name}: heads of {stated['attention.key_length']} need another attention scale than "
            f"transformers would use ({scale}^-0.5)"
        )


def _same(a: Any, b: Any) -> bool:
    """Equal; numbers as near as single precision tells them apart."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


def check_names(header: Header, config: Any) -> None:
    """Raise InputError unless each tensor of the file has its parameter, and each parameter its tensor.

    :func:`take_rope` has taken the rope factors over by then.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    parameters = {
        names.get_name(name, (".weight", ".bias")): name for name, _ in empty_model(config).named_parameters()
    }
    if None in parameters:
        raise InputError(f"{header.file.name}: {parameters[None]} has no name in GGUF")
    if lost := [name for name in header.tensors if name not in parameters and name != ROPE]:
        raise InputError(f"{header.file.name}: {len(lost)} tensors would be lost, the first is {lost[0]}")
    if empty := [name for name in parameters if name not in header.tensors]:
        raise InputError(f"{header.file.name}: {len(empty)} tensors are missing, the first is {empty[0]}")
