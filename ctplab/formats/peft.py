"""PEFT's folder for learned prompts (as of peft 0.21): one tensor, ``prompt_embeddings``, and a configuration.

PROMPT_TUNING                 (k, d) rows in front of the input; d is OPT-350m's ``word_embed_proj_dim``
PREFIX_TUNING, CARTRIDGE      (k, 2 · layers · heads · head_dim) keys and values of every layer, for one checkpoint;
                              heads are key-value heads, even slots keys, odd slots values

PEFT itself is not needed to read or write this.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctplab import tensor_files
from ctplab.disk import whole, write_json
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.prompts.compiled import Pairs
from ctplab.prompts.prefix import AnyPrefix, KVPrefix, Prefix
from ctplab.text_files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KINDS = {"PROMPT_TUNING": "peft", "PREFIX_TUNING": "kv", "CARTRIDGE": "kv"}
"""PEFT's name for the kind of prompt -> ours."""


def pack(kv: Pairs) -> Tensor:
    """Pack each layer's keys and values (1, heads, k, head_dim) into (k, 2 · layers · heads · head_dim)."""
    slots = [t[0].transpose(0, 1) for pair in kv for t in pair]  # (k, heads, head_dim)
    if len({slot.shape for slot in slots}) > 1:
        raise InputError("the model's layers have keys and values of different shapes, which PEFT's format cannot hold")
    return torch.stack(slots, 1).flatten(1)


def unpack(packed: Tensor, layers: int, heads: int) -> KVPrefix:
    """The inverse of :func:`pack`. Raises ValueError if the width does not divide."""
    k, width = packed.shape
    if layers < 1 or heads < 1 or width % (2 * layers * heads):
        raise ValueError(f"a width of {width} is not 2 x {layers} layers x {heads} heads x head_dim")
    slots = packed.view(k, 2 * layers, heads, -1).permute(1, 2, 0, 3)[:, None]  # (slot, 1, heads, k, head_dim)
    return KVPrefix("soft", tuple((slots[i], slots[i + 1]) for i in range(0, 2 * layers, 2)))


def write(prefix: AnyPrefix, folder: Path, model: Model, base: str | None) -> None:
    """Write rows as PROMPT_TUNING, keys and values as PREFIX_TUNING. Raises InputError if the disk refuses."""
    config = model.config.get_text_config()
    if isinstance(prefix, Prefix):
        tensor, kind, heads, more = prefix.rows, "PROMPT_TUNING", config.num_attention_heads, _ROWS
        width = prefix.rows.shape[1]
    else:
        tensor, kind, more = pack(list(prefix.kv)), "PREFIX_TUNING", _KEYS_AND_VALUES
        heads, width = prefix.kv[0][0].shape[1], prefix.kv[0][0].shape[1] * prefix.kv[0][0].shape[3]
    settings = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base,
        "num_virtual_tokens": prefix.k,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": config.num_hidden_layers,
        **more,
    }
    with whole(folder / WEIGHTS) as temporary:
        (folder / CONFIG).unlink(missing_ok=True)
        save_file({"prompt_embeddings": tensor.float().cpu().contiguous()}, temporary, metadata={"format": "pt"})
    write_json(settings, folder / CONFIG)


_ROWS = {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
_KEYS_AND_VALUES = {"prefix_projection": False, "encoder_hidden_size": None}


def kind_of(folder: Path) -> str:
    """Return ``peft`` (rows) or ``kv``. Raises InputError if the folder holds another kind of adapter."""
    found = read_json(folder / CONFIG).get("peft_type")
    if not isinstance(found, str) or found not in KINDS:
        raise InputError(f"{folder} holds a PEFT adapter of type {found}; prompts are {', '.join(KINDS)}")
    return KINDS[found]


def read(folder: Path) -> tuple[AnyPrefix, str | None]:
    """Read the prefix of a PEFT folder, and the name of its base model if the folder gives one."""
    config, kind = read_json(folder / CONFIG), kind_of(folder)
    base = config.get("base_model_name_or_path")
    if not os.path.lexists(folder / WEIGHTS):
        raise InputError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors")
    try:
        tensor = tensor_files.read(folder / WEIGHTS)["prompt_embeddings"].float()
        if tensor.ndim != 2 or tensor.shape[0] != config["num_virtual_tokens"] or tensor.numel() == 0:
            raise ValueError(f"prompt_embeddings {tuple(tensor.shape)} does not fit {CONFIG}")
        if kind == "kv":
            return unpack(tensor, int(config["num_layers"]), int(config["num_attention_heads"])), _text(base)
        return Prefix("soft", tensor), _text(base)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"the PEFT prompt in {folder} is damaged: {error}") from None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
