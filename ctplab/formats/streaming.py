"""Compress a model larger than memory: read blocks from safetensors one at a time, and write them packed.

Memory holds the tensors outside the blocks, one dense block with its Hessians, and the hidden states of the calibration
windows. Each finished block is a file of the result. So a killed run resumes at the block where it stopped and ends
with the same bytes.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctplab import parallel, tensor_files
from ctplab.compression.packing import unpack
from ctplab.compression.reports import Done, report_of
from ctplab.compression.walk import walk
from ctplab.errors import InputError
from ctplab.formats import checkpoint
from ctplab.formats.aside import Aside, overlaps
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import blocks, parameter_name, weight_matrix
from ctplab.models.complete import check_complete, check_numbers, untie
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.models.loading import dtype_on, load_dense, local_folder, skeleton, usable
from ctplab.models.weights import weight_files
from ctplab.progress import Progress, bar
from ctplab.specs import CompressionSpec


class Source:
    """The tensors of a Hugging Face folder's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            self.files |= dict.fromkeys(tensor_files.shapes(path), path)

    def names(self, model: Model) -> dict[str, str]:
        """Parameter and buffer names of ``model`` -> names in the files (with or without the base model's prefix).

        Raises KeyError if one is missing: the model's own loading code must then convert the weights. Raises InputError
        if tensors beside these change what they mean.
        """
        prefix = f"{model.base_model_prefix}."
        tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(
            model.named_parameters()
        ).keys()
        found = {}
        for name in model.state_dict():
            choices = (name, name.removeprefix(prefix), prefix + name)
            stored = next((choice for choice in choices if choice in self.files), None)
            if stored is None and name not in tied:
                raise KeyError(name)
            if stored is not None:
                found[name] = stored
        check_complete(next(iter(self.files.values())).parent, model, (), self.files.keys() - found.values())
        return found

    def untie(self, model: Model, names: dict[str, str]) -> None:
        """Give the head a matrix of its own if the files hold one that is not the embeddings, as transformers does."""
        inside, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is None or head.weight is not inside.weight:
            return
        tied = [n for n, p in model.named_parameters(remove_duplicate=False) if p is head.weight and n in names]
        matrices = list(self.read({n: names[n] for n in tied}, torch.float32, "cpu").values())
        if any(not torch.equal(matrices[0], other) for other in matrices[1:]):
            untie(model.config)
            head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=False)

    def read(self, names: dict[str, str], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Read the tensors ``names`` (model name -> name in the files)."""
        found = {}
        for name, stored in names.items():
            with tensor_files.opened(self.files[stored]) as file:
                tensor = file.get_tensor(stored)
                found[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        return found


def _kept_precise(model: Model) -> bool:
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return any(getattr(part, name, None) for part in model.modules() for name in names)


def _key(
    spec: CompressionSpec,
    calibration: Tensor,
    batch: int,
    source: Path,
    dtype: torch.dtype,
    device: str,
    products: str | None,
) -> str:
    """16 hex digits that change with everything that changes a block's bytes."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in weight_files(source)]
    kind = torch.device(device).type
    what = [spec.to_json(), tensor_fingerprint(calibration), batch, str(source), files, str(dtype), kind, products]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@torch.no_grad()
def compress_to(
    name: str | Path,
    out: Path,
    tokenizer: Tokenizer,
    calibration: Tensor,
    spec: CompressionSpec,
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch: int = 16,
    products: str | None = None,
    progress: Progress = bar,
) -> dict[str, Any]:
    """Compress model ``name`` (folder or hub id) into ``out``, block by block, and return the manifest.

    Resumes: blocks in ``out`` that were made from the same model, calibration and spec are kept. Several processes
    share the windows; the main one writes. ``products``: as in ``walk.compress``. Raises InputError if the model is
    compressed already, and whenever ``walk.compress`` does.
    """
    began = time.perf_counter()
    folder, device = local_folder(name), usable(None if device == "auto" else device)
    if (folder / checkpoint.MANIFEST).exists():
        raise InputError(f"{name} is compressed already; compress the full model it came from")
    check_numbers(folder)
    kind = dtype_on(device, dtype)
    source, model = Source(folder), skeleton(folder, kind)
    try:
        names = source.names(model)
        source.untie(model, names)
        if kind != torch.float32 and _kept_precise(model):
            raise KeyError("some modules stay in float32: transformers knows which")
    except KeyError:  # stored in another layout than the model's: transformers converts it, in memory
        model, names = load_dense(folder, device=device, dtype=dtype)[0], {}
    if parallel.is_main():
        checkpoint.start_folder(out)
    parallel.wait()  # the folder exists now, and no process finishes before all have begun
    key = _key(spec, calibration, batch, folder, kind, device, products)
    prefixes = [prefix for prefix, _ in blocks(model)]
    outside = {n: s for n, s in names.items() if not n.startswith(tuple(f"{p}." for p in prefixes))}
    model.load_state_dict(source.read(outside, kind, device), strict=False, assign=True)
    model.tie_weights()
    for module in model.modules():  # rotary tables and the like
        for buffer, value in module._buffers.items():
            module._buffers[buffer] = None if value is None else value.to(device)
    done: Done = []

    def read(index: int) -> dict[str, Tensor]:
        mine = {n: s for n, s in names.items() if n.startswith(f"{prefixes[index]}.")}
        return source.read(mine, kind, "cpu" if overlaps(device) else device)

    def load(index: int, block: nn.Module) -> None:
        tensors = aside.read(index, read, len(prefixes) - 1)
        model.load_state_dict(
            {n: t.to(device, non_blocking=True) for n, t in tensors.items()}, strict=False, assign=True
        )

    def enter(index: int, block: nn.Module) -> bool:
        load(index, block)
        kept = checkpoint.read_block(checkpoint.block_file(out, index), key)
        if kept is None:
            return False
        for report, parts in kept[1]:
            matrix = weight_matrix(model, report.name)
            matrix.copy_(unpack(parts, spec.bits).to(matrix))
        done.extend(kept[1])
        return True

    def leave(index: int, block: nn.Module) -> None:
        if names:
            empty = {n: torch.empty_like(p, device="meta") for n, p in block.named_parameters()}
            block.load_state_dict(empty, strict=False, assign=True)

    visits: dict[str, Any] = {"load": load, "enter": enter, "leave": leave}
    with Aside(device) as aside:
        passes: dict[str, Any] = {"batch": batch, "products": products, "progress": progress}
        for index, found in walk(model, calibration, spec, **passes, **visits):
            prefix = prefixes[index]
            compressed = {parameter_name(report.name, model) for report, _ in found}
            state = model.get_submodule(prefix).state_dict()
            others = {f"{prefix}.{n}": t for n, t in state.items() if f"{prefix}.{n}" not in compressed}
            if parallel.is_main():
                aside.write(checkpoint.write_block, checkpoint.block_file(out, index), others, found, key)
            done += found
    done.sort(key=lambda pair: next(i for i, p in enumerate(prefixes) if pair[0].name.startswith(f"{p}.")))
    report = report_of(model, done, spec, calibration, time.perf_counter() - began)
    rest = {n: t for n, t in checkpoint.other_tensors(model, report).items() if t.device.type != "meta"}
    rest = {n: t for n, t in rest.items() if not n.startswith(tuple(f"{p}." for p in prefixes))}
    if parallel.is_main():
        checkpoint.finish_folder(out, model, tokenizer, report, str(name), rest)
    parallel.wait()
    return checkpoint.read_manifest(out)
