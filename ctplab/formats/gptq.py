"""Write and read the GPTQ checkpoint format, which AutoGPTQ, GPTQModel, transformers and vLLM exchange.

A linear with W (out, in) is stored as qweight int32 (in·bits/32, out), qzeros int32 (groups, out·bits/32), scales fp16
(groups, out) and g_idx int32 (in); W = scales[g_idx] · (code - zero[g_idx]). Words hold one little-endian bit stream
along ``in`` (codes) or ``out`` (zeros). ``gptq`` (v1) stores zero - 1, ``gptq_v2`` stores zero; the files say which.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ctplab import tensor_files
from ctplab.compression.linear import PackedLinear
from ctplab.compression.packing import full_codes, group_of, pack_bits, unpack, unpack_bits
from ctplab.compression.parts import check_parts
from ctplab.disk import whole_folder, write_json
from ctplab.errors import InputError
from ctplab.formats import checkpoint
from ctplab.models import Model
from ctplab.models.anatomy import as_matrix, blocks, transposed
from ctplab.models.loading import load_tokenizer, skeleton
from ctplab.models.weights import check_config
from ctplab.specs import CompressionSpec
from ctplab.text_files import read_json

FORMATS = ("gptq", "gptq_v2", "dense")
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def pack_words(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers (n, m) along the first axis into int32 words, (n · bits / 32, m)."""
    n, m = values.shape
    words = pack_bits(values.T.contiguous(), bits).view(m, n * bits // 8)
    return words.view(torch.int32).T.contiguous()


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack_words`, (n, m) uint8."""
    count, m = words.shape
    n = count * 32 // bits
    return unpack_bits(words.T.contiguous().view(torch.uint8).flatten(), bits, n * m).view(m, n).T.contiguous()


def to_gptq(parts: dict[str, Tensor], bits: int, v2: bool, name: str) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of a packed matrix. Raises InputError if the format cannot hold it."""
    rows, columns = parts["shape"].tolist()
    if "codes" not in parts:
        raise InputError(f"{name} is pruned, not quantised: GPTQ holds codes only; use to='dense'")
    if rows % 32 or columns % 32:
        raise InputError(f"{name} is {rows} x {columns}: GPTQ's words need both to be multiples of 32; use to='dense'")
    if parts["scale"].dtype != torch.float16:
        raise InputError(f"{name}: its scales need more than half precision; compress it without reference=True")
    zero = parts["zero"].T.contiguous()
    if not v2 and not zero.all():
        raise InputError(
            f"{name} has grids whose zero is code 0, which GPTQ v1 (it stores zero - 1) cannot hold; "
            "use to='gptq_v2', or compress it with symmetric=True"
        )
    return {
        "qweight": pack_words(full_codes(parts, bits).T.contiguous(), bits),
        "qzeros": pack_words((zero if v2 else zero - 1).T.contiguous(), bits).T.contiguous(),
        "scales": parts["scale"].T.contiguous(),
        "g_idx": group_of(parts).to(torch.int32),
    }


def from_gptq(stored: dict[str, Tensor], bits: int, v2: bool) -> dict[str, Tensor]:
    """The inverse of :func:`to_gptq`. Raises KeyError, ValueError or RuntimeError if the tensors are damaged."""
    for name in ("qweight", "qzeros", "g_idx"):
        if name in stored and stored[name].dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} is {stored[name].dtype}, not whole numbers")
    if any(stored[name].dtype != torch.int32 or stored[name].ndim != 2 for name in ("qweight", "qzeros")):
        raise ValueError("qweight and qzeros are not words in two dimensions")
    if stored["scales"].ndim != 2 or not stored["scales"].is_floating_point():
        raise ValueError("scales are no floats in two dimensions")
    codes = unpack_words(stored["qweight"], bits).T.contiguous()
    zero = unpack_words(stored["qzeros"].T.contiguous(), bits)
    rows, columns = codes.shape
    groups = stored["scales"].shape[0]
    if stored["scales"].shape[1] != rows or zero.shape != (rows, groups):
        raise ValueError("scales or zeros do not fit the codes")
    parts = {
        "shape": torch.tensor([rows, columns]),
        "codes": pack_bits(codes, bits),
        "scale": stored["scales"].T.contiguous(),
        "zero": zero if v2 else zero + 1,
    }
    if groups > 1:
        g_idx = stored.get("g_idx")
        parts["group"] = torch.arange(columns) // (columns // groups) if g_idx is None else g_idx
        parts["group"] = parts["group"].to(torch.int32)
        if len(parts["group"]) != columns or int(parts["group"].min()) < 0 or int(parts["group"].max()) >= groups:
            raise ValueError("g_idx does not fit")
    return parts


def settings(spec: CompressionSpec, name: str) -> dict[str, Any]:
    """What GPTQ readers must know, as ``quantization_config`` of config.json and as quantize_config.json."""
    return {
        "quant_method": "gptq",
        "bits": spec.bits,
        "group_size": spec.group_size or -1,
        "desc_act": bool(spec.act_order and not spec.static_groups and spec.group_size),
        "sym": spec.symmetric,
        "static_groups": spec.static_groups,
        "true_sequential": spec.true_sequential,
        "damp_percent": spec.damp,
        "lm_head": False,
        "checkpoint_format": name,
        "meta": {"quantizer": ["ctplab"]},
    }


def converted(folder: Path, to: str) -> tuple[Model, dict[str, Tensor], CompressionSpec]:
    """The compressed model in ``folder`` as the tensors of a checkpoint: its skeleton, tensors by name, its spec.

    The codes are the solver's own: nothing is rounded again. Raises InputError if the format cannot hold the model.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}; known are {', '.join(FORMATS)}")
    spec = CompressionSpec.from_json(checkpoint.read_manifest(folder)["spec"])
    model = skeleton(folder)
    tensors: dict[str, Tensor] = {}
    for path in [folder / "rest.safetensors", *(checkpoint.block_file(folder, i) for i in range(len(blocks(model))))]:
        stored = checkpoint.read_tensors(path)
        tensors |= {name: tensor for name, tensor in stored.items() if "::" not in name}
        for unit, parts in checkpoint.parts_of(stored).items():
            if to == "dense":
                _put_dense(tensors, model, unit, unpack(parts, spec.bits, torch.float16))
            elif f"{unit}.weight" not in model.state_dict():
                raise InputError(f"{unit} is one of several stacked experts, which GPTQ does not know; use to='dense'")
            else:
                found = to_gptq(parts, spec.bits or 0, to == "gptq_v2", unit)
                tensors |= {f"{unit}.{part}": tensor for part, tensor in found.items()}
    if to != "dense":  # AutoGPTQ ties nothing: without its own copy the output head would stay uninitialised
        first = {id(p): name for name, p in model.named_parameters()}
        for name, p in model.named_parameters(remove_duplicate=False):
            if name not in tensors and first[id(p)] in tensors:
                tensors[name] = tensors[first[id(p)]].clone()
    return model, {name: t.contiguous() for name, t in tensors.items()}, spec


def export(folder: Path, out: Path, to: str) -> dict[str, Any]:
    """Write the compressed model in ``folder`` to the new ``out`` as ``gptq``, ``gptq_v2`` or ``dense`` (plain fp16).

    Raises InputError if ``out`` exists, the format cannot hold the model, and for all that ``converted`` raises.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it")
    model, tensors, spec = converted(folder, to)
    with whole_folder(out) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(new)
        load_tokenizer(folder).save_pretrained(new)
        config = read_json(new / "config.json", finite=False)
        config["dtype"] = config["torch_dtype"] = "float16"  # older readers look for the second
        if to != "dense":
            config["quantization_config"] = settings(spec, to)
            write_json(settings(spec, to), new / "quantize_config.json")
        write_json(config, new / "config.json")
    size = (out / "model.safetensors").stat().st_size
    return {"out": str(out), "format": to, "tag": spec.tag, "bytes": size}


def _put_dense(tensors: dict[str, Tensor], model: Model, unit: str, dense: Tensor) -> None:
    """Add one unit's dense weights under the architecture's own name and in its layout."""
    if f"{unit}.weight" in model.state_dict():
        linear = isinstance(model.get_submodule(unit), nn.Linear)
        tensors[f"{unit}.weight"] = dense if linear else dense.T.contiguous()
        return
    stack, _, expert = unit.rpartition(".")
    if stack not in tensors:
        tensors[stack] = torch.empty(model.state_dict()[stack].shape, dtype=torch.float16)
    experts = model.get_submodule(stack.rpartition(".")[0])
    tensors[stack][int(expert)] = dense.T if transposed(experts) else dense


def quantization(folder: Path) -> dict[str, Any] | None:
    """The GPTQ settings of a model folder, or None if it is no GPTQ folder."""
    try:
        config = read_json(folder / "config.json", finite=False).get("quantization_config")
        extra = folder / "quantize_config.json"
        if config is None and extra.exists():
            config = read_json(extra)
    except InputError:  # a name of the hub, or told when the configuration is read
        return None
    if not isinstance(config, dict) or config.get("quant_method", "gptq") != "gptq" or "bits" not in config:
        return None
    return config


def load_gptq(folder: Path, dtype: torch.dtype, packed: bool) -> Model:
    """Load a GPTQ folder written by ctplab, AutoGPTQ or GPTQModel, dense or with PackedLinear layers."""
    stated = quantization(folder)
    assert stated is not None
    bits = stated["bits"]
    name = stated.get("checkpoint_format") or stated.get("format") or "gptq"
    if name not in ("gptq", "gptq_v2") or bits not in (2, 3, 4, 8):
        raise InputError(
            f"{folder}: GPTQ format {name!r} with {bits!r} bits is not known; known: gptq, gptq_v2; 2, 3, 4, 8"
        )
    check_config(folder)
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= tensor_files.read(path, finite=True)
    units = [key.removesuffix(".qweight") for key in stored if key.endswith(".qweight")]
    if not units:
        raise InputError(f"{folder} says it holds GPTQ weights, but no safetensors file there has any")
    model = skeleton(folder, dtype)
    taken = {f"{unit}.{part}" for unit in units for part in _PARTS}
    rest = {n: t.to(dtype) if t.is_floating_point() else t for n, t in stored.items() if n not in taken}
    for unit in units:
        try:
            parts = from_gptq(
                {p: stored[f"{unit}.{p}"] for p in _PARTS if f"{unit}.{p}" in stored}, bits, name == "gptq_v2"
            )
            layer = model.get_submodule(unit)
            matrix = as_matrix(layer)
            check_parts(parts, bits, (matrix.shape[0], matrix.shape[1]))
        except (KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{folder}: the packed weights of {unit} do not fit: {error}") from None
        if packed:
            bias = rest.pop(f"{unit}.bias", None)
            parent, _, child = unit.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedLinear(parts, bits, bias))
        else:
            dense = unpack(parts, bits, dtype)
            rest[f"{unit}.weight"] = dense if isinstance(layer, nn.Linear) else dense.T.contiguous()
    checkpoint.assign(model, {n: t for n, t in rest.items() if not _spare_bias(model, n)}, folder)
    return model


def _spare_bias(model: Model, name: str) -> bool:
    """Whether ``name`` is a bias that the model lacks: AutoGPTQ stores zeros for layers without a bias."""
    return name.endswith(".bias") and name not in model.state_dict()
