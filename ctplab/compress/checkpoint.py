"""Save and load compressed models: packed weights, everything else, and a manifest written last.

config.json, tokenizer files     as Hugging Face
packed.safetensors               parts of every compressed linear (see packing.py)
rest.safetensors                 embeddings, norms, biases; in half precision where that is exact
compression.json                 spec, losses, bytes, fingerprints, versions; its existence means: complete
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctplab.compress.linear import PackedLinear
from ctplab.compress.packing import unpack
from ctplab.compress.walk import CompressionReport
from ctplab.errors import InputError
from ctplab.models import (
    Model,
    Tokenizer,
    as_matrix,
    base_fingerprint,
    default_device,
    load_dense,
    resolve,
    tokenizer_fingerprint,
)
from ctplab.specs import SCHEMA, CompressionSpec

MANIFEST = "compression.json"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write ``data`` atomically: readers see the old file or the whole new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


def _smallest_exact(tensor: Tensor) -> Tensor:
    """The same values in half precision where nothing is lost, else as they are."""
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def save(out: Path, model: Model, tokenizer: Tokenizer, report: CompressionReport, base: str) -> dict[str, Any]:
    """Write a compressed model to ``out`` and return its manifest."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    packed = {f"{name}::{part}": t.cpu() for name, parts in report.parts.items() for part, t in parts.items()}
    rest, seen, tied = {}, {}, []
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") in report.parts:
            continue
        if tensor.data_ptr() in seen:
            tied.append(name)
            continue
        seen[tensor.data_ptr()] = name
        rest[name] = _smallest_exact(tensor.cpu()).contiguous()
    try:
        save_file(packed, out / "packed.safetensors", metadata={"format": "pt"})
        save_file(rest, out / "rest.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(out)
        tokenizer.save_pretrained(out)
        size = sum((out / f"{part}.safetensors").stat().st_size for part in ("packed", "rest"))
        weights = sum(layer.weights for layer in report.layers)
        manifest = {
            "schema": SCHEMA,
            "base": base,
            "tag": report.spec.tag,
            "spec": report.spec.to_json(),
            "base_fingerprint": base_fingerprint(model),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "calibration": report.calibration,
            "bytes": size,
            "bits_per_weight": round(report.bits_per_weight, 4),
            "nominal_bits_per_weight": report.spec.nominal_bits,
            "model_bits_per_weight": round(8 * size / (weights + sum(t.numel() for t in rest.values())), 4),
            "seconds": round(report.seconds, 2),
            "layers": [asdict(layer) for layer in report.layers],
            "untouched": list(report.untouched),
            "tied": tied,
            "versions": {"torch": torch.__version__},
        }
        write_json(out / MANIFEST, manifest)
    except OSError as error:
        raise InputError(f"cannot write the model to {out}: {error.strerror or error}") from error
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a compressed model. Raises InputError where it is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        CompressionSpec.from_json(manifest["spec"])
        return manifest
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}: the compression did not finish; run it again") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({type(error).__name__})") from None


def _open(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None


def load(
    name: str | Path, *, device: str | None = None, dtype: str | None = None, packed: bool = False
) -> tuple[Model, Tokenizer]:
    """Load any model: ``atlas``, a Hugging Face folder, a hub id, or a folder that :func:`save` wrote.

    ``packed``: a compressed model runs from its packed weights (small in memory, slower) instead of dense ones.
    """
    folder = Path(resolve(name))
    if (folder / "packed.safetensors").exists() or (folder / MANIFEST).exists():
        return _load_compressed(folder, device or default_device(), dtype, packed)
    return load_dense(name, device=device, dtype=dtype)


def _load_compressed(folder: Path, device: str, dtype: str | None, packed: bool) -> tuple[Model, Tokenizer]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    manifest = read_manifest(folder)
    spec = CompressionSpec.from_json(manifest["spec"])
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    rest, stored = _open(folder / "rest.safetensors"), _open(folder / "packed.safetensors")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
        missing, unexpected = model.load_state_dict({k: v.to(kind) for k, v in rest.items()}, strict=False)
    except Exception as error:  # a foreign folder can fail here in many ways; the user needs one line
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the compressed model {folder}: {reason}") from error
    model.tie_weights()
    names = [layer["name"] for layer in manifest["layers"]]
    lost = set(missing) - {f"{layer}.weight" for layer in names} - set(manifest["tied"])
    if lost or unexpected:
        raise InputError(f"{folder}: tensors do not fit the model: {sorted(lost | set(unexpected))[:3]}")
    with torch.no_grad():
        for layer in names:
            parts = {key.split("::")[1]: t for key, t in stored.items() if key.split("::")[0] == layer}
            _place(model, layer, parts, spec.bits, packed, folder)
    return model.requires_grad_(False).to(device).eval(), tokenizer


def _place(model: nn.Module, name: str, parts: dict[str, Tensor], bits: int | None, packed: bool, folder: Path) -> None:
    """Put one layer's weights in: dense, or as a PackedLinear."""
    layer = model.get_submodule(name)
    matrix = as_matrix(layer)
    try:
        if tuple(parts["shape"].tolist()) != tuple(matrix.shape):
            raise ValueError
        dense = None if packed else unpack(parts, bits)
    except (KeyError, ValueError, RuntimeError, AssertionError):
        raise InputError(f"{folder}: packed weights of {name} are damaged") from None
    if dense is not None:
        matrix.copy_(dense.to(matrix.dtype))
        return
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, PackedLinear(parts, bits, getattr(layer, "bias", None)))


def model_bytes(name: str | Path) -> int:
    """Bytes of all safetensors files of a model folder."""
    return sum(path.stat().st_size for path in Path(resolve(name)).glob("*.safetensors"))


def describe(name: str | Path) -> dict[str, Any]:
    """What a model folder holds, read from its files alone: for ``ctplab info``."""
    folder = Path(resolve(name))
    if (folder / MANIFEST).exists():
        return {key: value for key, value in read_manifest(folder).items() if key != "layers"}
    if not (folder / "config.json").exists():
        raise InputError(f"{name} is no model folder: it has neither {MANIFEST} nor config.json")
    weights = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no dict)
                weights += torch.Size(file.get_slice(key).get_shape()).numel()
    size = model_bytes(name)
    config = json.loads((folder / "config.json").read_text())
    return {
        "base": str(name),
        "tag": "full",
        "model_type": config.get("model_type"),
        "parameters": weights,
        "bytes": size,
        "model_bits_per_weight": round(8 * size / max(1, weights), 4),
    }
