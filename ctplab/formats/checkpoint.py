"""Save and load compressed models: packed weights, all other tensors, and a manifest that is written last.

config.json, tokenizer files     as Hugging Face
block-00000.safetensors, ...     one block per file: packed matrices (``name::part``, see packing.py), norms, biases
rest.safetensors                 tensors outside the blocks; like all unpacked ones in half precision if that is exact
compression.json                 spec, losses, bytes, fingerprints, versions; if it exists, the folder is complete
"""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctplab import tensor_files
from ctplab.compression.linear import PackedLinear
from ctplab.compression.packing import unpack
from ctplab.compression.parts import check_parts
from ctplab.compression.reports import CompressionReport, Done, LayerReport
from ctplab.disk import LOG, check_name, whole, write_json, writing
from ctplab.errors import InputError
from ctplab.machine import versions
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import blocks, parameter_name, weight_matrix
from ctplab.models.fingerprints import base_facts, tokenizer_fingerprint
from ctplab.models.loading import resolve, skeleton
from ctplab.models.origin import origin
from ctplab.models.weights import check_config, weight_files
from ctplab.specs import SCHEMA, CompressionSpec
from ctplab.text_files import expect, read_json, shown, told

MANIFEST = "compression.json"
ENTRIES = {"spec": dict, "tag": str, "base": str, "calibration": str, "bytes": int, "seconds": float, "layers": list}
ENTRIES |= {"bits_per_weight": float, "untouched": list, "warnings": list, "tokenizer_fingerprint": str}
"""What a manifest holds at least, and of which type. ``info`` and the table of a sweep show more of it."""


def _smallest_exact(tensor: Tensor) -> Tensor:
    """The same values in half precision if nothing is lost, else as they are."""
    for kind in (torch.float16, torch.bfloat16):
        half = tensor.to(kind)
        if torch.equal(half.to(tensor.dtype), tensor):
            return half
    return tensor


def _plain(tensor: Tensor) -> Tensor:
    """The same with plain strides: a dimension of size 1 may have any, which safetensors refuses."""
    return tensor if tensor.ndim == 0 or tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def block_file(out: Path, index: int) -> Path:
    """The file that holds block ``index``."""
    return out / f"block-{index:05d}.safetensors"


def write_block(path: Path, block_tensors: dict[str, Tensor], done: Done, key: str) -> None:
    """Write one block: ``name::part`` of its packed matrices, its other tensors by name, and the layers' reports.

    The write is atomic: a block file that exists is complete. ``key`` identifies what the block was made from.
    """
    tensors = {f"{report.name}::{part}": _plain(t.cpu()) for report, parts in done for part, t in parts.items()}
    tensors |= {name: _smallest_exact(t.cpu()) for name, t in block_tensors.items()}
    about = {"key": key, "layers": [asdict(report) for report, _ in done]}
    with whole(path) as temporary:
        tensor_files.write_sealed(tensors, about, temporary)


def read_block(path: Path, key: str) -> tuple[dict[str, Tensor], Done] | None:
    """Read a block: (other tensors, reports with packed weights). None if no intact one was made from ``key``."""
    if not path.exists():
        return None
    try:
        stored, about = tensor_files.read_sealed(path)
    except InputError as error:
        LOG.warning("%s; it is made anew", error)
        return None
    if about.get("key") != key:
        return None
    reports, parts = [LayerReport(**row) for row in about["layers"]], parts_of(stored)
    return {n: t for n, t in stored.items() if "::" not in n}, [(r, parts[r.name]) for r in reports]


def parts_of(stored: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group ``name::part`` tensors: name -> part -> tensor."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, mark, part = key.partition("::")
        if mark:
            found.setdefault(name, {})[part] = tensor
    return found


def other_tensors(model: Model, report: CompressionReport) -> dict[str, Tensor]:
    """The parameters and saved buffers that were not compressed, each once (tied ones under their first name)."""
    compressed = {parameter_name(layer.name, model) for layer in report.layers}
    found, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if name in compressed or (tensor.device.type != "meta" and tensor.data_ptr() in seen):
            continue
        seen.add(tensor.data_ptr())
        found[name] = tensor
    return found


def save(model: Model, out: Path, tokenizer: Tokenizer, report: CompressionReport, base: str) -> dict[str, Any]:
    """Write a compressed model to ``out`` and return its manifest."""
    start_folder(out)
    rest = other_tensors(model, report)
    names = [name for name, _ in blocks(model)]
    for index, prefix in enumerate(names):
        mine = {name: rest.pop(name) for name in list(rest) if name.startswith(f"{prefix}.")}
        done = [(layer, report.parts[layer.name]) for layer in report.layers if layer.name.startswith(f"{prefix}.")]
        write_block(block_file(out, index), mine, done, key=report.calibration)
    return finish_folder(out, model, tokenizer, report, base, rest)


def start_folder(out: Path) -> None:
    """Make the folder ``out`` and delete its manifest, so that it counts as unfinished.

    Raises InputError if another model is in it.
    """
    if (out / "config.json").exists() and not ((out / MANIFEST).exists() or block_file(out, 0).exists()):
        raise InputError(f"{out} holds another model, which would be overwritten; choose another folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)


def finish_folder(
    out: Path, model: Model, tokenizer: Tokenizer, report: CompressionReport, base: str, rest: dict[str, Tensor]
) -> dict[str, Any]:
    """Write the tensors outside the blocks, the configuration, the tokenizer and, last, the manifest."""
    with writing(out):
        with whole(out / "rest.safetensors") as temporary:
            tensor_files.write({name: _smallest_exact(tensor.cpu()) for name, tensor in rest.items()}, temporary)
        model.config.save_pretrained(out)
        tokenizer.save_pretrained(out)
        files = [out / "rest.safetensors", *(block_file(out, i) for i in range(len(blocks(model))))]
        size = sum(path.stat().st_size for path in files)  # without files that an earlier run may have left
        parameters = sum(p.numel() for p in model.parameters())  # each tied one once
        manifest = {
            "schema": SCHEMA,
            "base": base,
            "tag": report.spec.tag,
            "spec": report.spec.to_json(),
            **base_facts(model),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "calibration": report.calibration,
            "bytes": size,
            "bits_per_weight": round(report.bits_per_weight, 4),
            "nominal_bits_per_weight": report.spec.nominal_bits,
            "block_bits_per_weight": round(report.block_bits_per_weight, 4),
            "model_bits_per_weight": round(8 * size / parameters, 4),
            "seconds": round(report.seconds, 2),
            "layers": [asdict(layer) for layer in report.layers],
            "untouched": list(report.untouched),
            "warnings": report.warnings,
            "versions": versions("torch"),
        }
        write_json(manifest, out / MANIFEST)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a compressed model. Raises InputError if it is missing or damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        if block_file(folder, 0).exists():
            raise InputError(f"{folder} has no {MANIFEST}: the compression did not finish; run it again")
        raise InputError(f"{folder} is no compressed model: it has no {MANIFEST}")
    manifest = read_json(path, finite=False)  # the loss of a damaged layer may be infinite
    with told(path):
        expect(manifest, **ENTRIES, tuned=dict | None)
        if (tuned := manifest.get("tuned")) is not None:
            expect(tuned, what=list, **{"from": str | None})
            if not tuned["what"] or not all(isinstance(kind, str) for kind in tuned["what"]):
                raise InputError(f"what was tuned is {shown(tuned['what'])}, no list of kinds")
        spec = CompressionSpec.from_json(manifest["spec"])
        check_name(manifest["tag"], "the tag")
        if manifest["tag"].partition("+")[0] != spec.tag:  # a tuned model's says what was tuned behind a +
            raise InputError(f"the tag is {shown(manifest['tag'])}, but the spec's is {spec.tag}")
    return manifest


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file. Raises InputError if it is missing or damaged."""
    return tensor_files.read(path, finite=True)


def load_compressed(folder: Path, dtype: torch.dtype, packed: bool) -> Model:
    """Load the model in ``folder``, dense or with PackedLinear layers. Raises InputError if the folder is damaged."""
    manifest = read_manifest(folder)
    spec = CompressionSpec.from_json(manifest["spec"])
    check_config(folder)
    model = skeleton(folder, dtype)
    for path in [folder / "rest.safetensors", *(block_file(folder, i) for i in range(len(blocks(model))))]:
        stored = read_tensors(path)
        assign(
            model, {n: t.to(dtype) if t.is_floating_point() else t for n, t in stored.items() if "::" not in n}, folder
        )
        for unit, parts in parts_of(stored).items():
            _place(model, unit, parts, spec.bits, packed, folder, dtype)
    return model


def assign(model: Model, tensors: dict[str, Tensor], folder: Path) -> None:
    """Assign ``tensors`` to the model's parameters and buffers. Raises InputError if they do not fit."""
    known = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name in known and known[name].is_floating_point() and not tensor.is_floating_point():
            raise InputError(f"{folder}: tensors do not fit the model: {name} holds {tensor.dtype}, not floats")
    try:
        unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise InputError(f"{folder}: tensors do not fit the model: {str(error).splitlines()[-1].strip()}") from None
    if unexpected:
        raise InputError(f"{folder}: tensors do not fit the model: {unexpected[:3]}")


def _place(
    model: Model, unit: str, parts: dict[str, Tensor], bits: int | None, packed: bool, folder: Path, kind: torch.dtype
) -> None:
    """Put one unit's weights into the model: dense, or as a PackedLinear (stacked experts are always dense)."""
    try:
        matrix = weight_matrix(model, unit)
        check_parts(parts, bits, (matrix.shape[0], matrix.shape[1]))
        whole = parameter_name(unit, model)
    except (ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{folder}: packed weights of {unit} are damaged: {error}") from None
    dense = unpack(parts, bits, kind)
    owner, _, name = whole.rpartition(".")
    module = model.get_submodule(owner)
    if whole != f"{unit}.weight":
        if getattr(module, name).device.type == "meta":
            empty = torch.empty_like(getattr(module, name), device="cpu")
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        weight_matrix(model, unit).copy_(dense)
    elif packed:
        parent, _, child = unit.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(parts, bits, getattr(module, "bias", None)))
    else:
        upright = dense if isinstance(module, nn.Linear) else dense.T.contiguous()
        setattr(module, name, nn.Parameter(upright, requires_grad=False))


def model_bytes(name: str | Path) -> int:
    """Total bytes of the safetensors files in a model folder."""
    return sum(path.stat().st_size for path in weight_files(Path(resolve(name))))


def describe(name: str | Path) -> dict[str, Any]:
    """Describe a model folder from its files alone, for ``ctplab info``."""
    folder = Path(resolve(name))
    if (folder / MANIFEST).exists():
        return {key: value for key, value in read_manifest(folder).items() if key != "layers"} | origin(folder)
    if not (folder / "config.json").exists():
        raise InputError(f"{name} is no model folder: it has neither {MANIFEST} nor config.json")
    weights = sum(math.prod(shape) for path in weight_files(folder) for shape in tensor_files.shapes(path).values())
    size = model_bytes(name)
    config = read_json(folder / "config.json", finite=False)
    if isinstance(config.get("quantization_config"), dict):  # a packed format: its words are not weights
        settings = config["quantization_config"]
        known = {key: settings.get(key) for key in ("quant_method", "checkpoint_format", "bits", "group_size", "sym")}
        return {"base": str(name), "model_type": config.get("model_type"), "bytes": size, **known, **origin(folder)}
    return {
        "base": str(name),
        "tag": "full",
        "model_type": config.get("model_type"),
        "parameters": weights,
        "bytes": size,
        "model_bits_per_weight": round(8 * size / max(1, weights), 4),
        **origin(folder),
    }
