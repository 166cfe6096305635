"""Hugging Face causal language models: load one, and find its blocks, linears, embeddings and context length."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctplab.atlas.facts import data_dir
from ctplab.errors import InputError

#: transformers models and tokenizers come without usable static types.
Model = Any
Tokenizer = Any


def resolve(name: str | Path) -> str:
    """``atlas`` is the embedded model; anything else is a folder or a hub id."""
    return str(data_dir() / "model") if str(name) == "atlas" else str(name)


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def runs_on_cpu(device: str) -> bool:
    """``cpu``, or ``auto`` where there is no GPU."""
    return device == "cpu" or (device == "auto" and default_device() == "cpu")


def place(model: Model, device: str) -> Model:
    """The model on ``device``, or with ``auto`` its blocks over all GPUs.

    Raises InputError where they do not hold it.
    """
    if device != "auto" or runs_on_cpu(device):
        return model.to(device.replace("auto", "cpu"))
    from accelerate import dispatch_model, infer_auto_device_map

    kinds = sorted({type(block).__name__ for _, block in blocks(model)})
    where = infer_auto_device_map(model, no_split_module_classes=kinds)
    if {"cpu", "disk"} & {str(part) for part in where.values()}:
        raise InputError("the model does not fit into the GPUs; compress it, use --packed, or --device cpu")
    return dispatch_model(model, where)


def check_name(name: str | Path) -> str:
    """``name`` resolved. Raises InputError where it can be neither a model folder nor a hub id."""
    path = resolve(name)
    local = Path(path).is_dir()
    if not local and (path.startswith((".", "/", "~")) or path.count("/") > 1 or os.environ.get("HF_HUB_OFFLINE")):
        raise InputError(f"no model folder at {path!r}; give a folder with config.json, 'atlas' or a hub id")
    if local and not (Path(path) / "config.json").exists():
        raise InputError(f"{path} has no config.json: it is not a Hugging Face model folder")
    return path


def load_dense(name: str | Path, *, device: str | None = None, dtype: str | None = None) -> tuple[Model, Tokenizer]:
    """Load an uncompressed causal LM and its tokenizer from a folder or the hub.

    ``device``: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for all GPUs together. ``dtype``: ``float32``, ``bfloat16``
    or ``float16``; by default float32 on a CPU, the file's own on a GPU.
    No code from the repository is run. Raises InputError with one line where nothing can be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    path = check_name(name)
    device = device or default_device()
    kind = getattr(torch, dtype) if dtype else (torch.float32 if runs_on_cpu(device) else "auto")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model: Model = AutoModelForCausalLM.from_pretrained(
            path, dtype=kind, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises a dozen types here; the user needs one line
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the model {str(name)!r}: {reason}") from error
    model.requires_grad_(False)
    return place(model, device).eval(), tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises InputError with one line where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as for models
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the tokenizer of {folder}: {reason}") from error


def load_config(name: str | Path) -> Any:
    """The configuration of a model, without its weights. Raises InputError with one line where there is none."""
    from transformers import AutoConfig

    path = check_name(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # as for models
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot read the configuration of {name}: {reason}") from error


def skeleton(folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """The model described by ``folder`` with all parameters on the meta device (buffers are real): no memory yet."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "quantization_config"):  # ctplab reads packed weights itself
        delattr(config, "quantization_config")
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    return model.requires_grad_(False).eval()


@contextmanager
def eager_experts(model: Model) -> Iterator[None]:
    """Mixture-of-experts blocks compute expert by expert with plain products, which can be watched."""
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def blocks(model: Model) -> list[tuple[str, nn.Module]]:
    """The decoder blocks in order with their names: the module list with linears (packed ones too) that is largest."""

    def counts(block: nn.Module) -> bool:
        return bool(linears(block)) or any(hasattr(module, "in_features") for module in block.modules())

    def numbers(module: nn.Module) -> int:
        return sum(t.numel() for t in (*module.parameters(), *module.buffers()))

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(name, module) for name, module in lists if len(module) and counts(module[0])]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of decoder blocks with linear layers")
    name, found = max(lists, key=lambda pair: numbers(pair[1]))
    return [(f"{name}.{index}", block) for index, block in enumerate(found)]


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """``nn.Linear`` and GPT-2's ``Conv1D`` layers of a block, by name inside the block."""
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def as_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as (out, in), whichever way it is stored. A view."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.T


def weight_matrix(module: nn.Module, unit: str) -> Tensor:
    """(out, in) view of a linear called ``unit`` in ``module``, or of one expert (``experts.down_proj.3``)."""
    parent, _, last = unit.rpartition(".")
    if last.isdigit():
        owner, _, name = parent.rpartition(".")
        stack = getattr(module.get_submodule(owner), name)
        if isinstance(stack, nn.Parameter):
            return stack[int(last)]
    return as_matrix(module.get_submodule(unit))


def embeddings(model: Model) -> Tensor:
    """The input embedding matrix, (vocabulary, d). OPT-350m: d is ``word_embed_proj_dim``."""
    return model.get_input_embeddings().weight


def embed(model: Model, ids: Tensor) -> Tensor:
    """Rows as the model itself embeds them (scaled where its embedding module scales), (..., d)."""
    return model.get_input_embeddings()(ids.to(embeddings(model).device))


def context_length(model: Model) -> int | None:
    """Most positions the model takes, or None where nothing bounds it (ALiBi)."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(getattr(config, key, None), int):
            return getattr(config, key)
    return None


def check_context(model: Model, k: int, length: int) -> None:
    """Raise InputError where k prefix rows and ``length`` tokens do not fit."""
    limit = context_length(model)
    if limit is not None and k + length > limit:
        raise InputError(
            f"{k} prompt tokens + {length} text tokens = {k + length} positions, but the model takes {limit}; "
            f"use a sequence length of at most {max(0, limit - k)}"
        )


def tensor_fingerprint(*tensors: Tensor) -> str:
    """16 hex digits over shapes and values (at most 256 evenly spaced rows of each tensor)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps(list(tensor.shape)).encode())
        if tensor.numel() == 0:
            continue
        rows = tensor.detach().reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)
        step = max(1, rows.shape[0] // 256)
        digest.update(rows[::step].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def base_fingerprint(model: Model) -> str:
    """Identifies the uncompressed base: compression never touches the embeddings."""
    return tensor_fingerprint(embeddings(model))


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits over the vocabulary with its ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
