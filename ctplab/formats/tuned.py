"""Folds learned changes into a compressed folder: the same masks and bytes, other scales, norms, codes or kept values.

What can change without a new byte:

    scales     factors m: every grid's scale s becomes m·s; a pruned row's kept values are multiplied by m
    norms      the one-dimensional parameters: weights of norms, and biases
    low-rank   B·A is added to the kept values of a pruned matrix, and inside the rounding to the codes of others
    codes      kept codes move by whole steps of their grids; kept values that have no codes change one by one

Codes are integers on a grid whose zero is an integer too, so nothing can be added to quantised weights without rounding
them again. ``codes`` and ``low-rank`` learn through the rounding. QA-LoRA (arXiv 2309.14717) does without: it pools A
over each group, so that B·A adds one constant to a group, and puts that constant into the zero. Its zeros are real
numbers. Ours are integers, as GPTQ's files and all kernels that read them want, so the constant would be rounded to
whole steps of the grid. Learned zeros fail alike: none moves by half a step.

Every tuning has a name of its own: the fingerprint of what was learned stands in the configuration, and its first
digits in the tag (``w3+scales+norms-1a2b3c``). So a prompt's file tells two tunings of one folder apart.

The sources: EfficientQAT (arXiv 2407.11062) for scales, and for weights behind a rounding; LR-QAT (arXiv 2406.06385)
for low-rank updates there; PERP (arXiv 2312.15230) for norms and for low-rank updates that keep a mask.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctplab import tensor_files
from ctplab.compression.packing import full_codes, kept_of, pack_bits
from ctplab.compression.parts import check_parts
from ctplab.disk import whole, whole_folder, write_json
from ctplab.errors import InputError
from ctplab.formats import checkpoint
from ctplab.machine import versions
from ctplab.models.fingerprints import TUNED, tensor_fingerprint, text_fingerprint
from ctplab.specs import CompressionSpec
from ctplab.text_files import read_json

KINDS = ("scales", "norms", "low-rank", "codes")
SOFT = "soft"
"""A prompt that was learned together with the changes; it lies in the folder ``PROMPT`` beside the weights."""
PROMPT = "prompt"
MANIFEST = checkpoint.MANIFEST
DIGITS = 6
"""Of the fingerprint, in the tag."""


def block_files(folder: Path) -> list[Path]:
    """The files of a compressed folder's tensors. Raises InputError if it is none."""
    checkpoint.read_manifest(folder)
    return [folder / "rest.safetensors", *sorted(folder.glob("block-*.safetensors"))]


def _matrices(path: Path, stored: dict[str, Tensor], bits: int | None) -> dict[str, dict[str, Tensor]]:
    """The packed matrices of a file's tensors: unit -> its parts. Raises InputError if one is damaged."""
    found = checkpoint.parts_of(stored)
    for unit, parts in found.items():
        try:
            rows, columns = parts["shape"].flatten().tolist()
            check_parts(parts, bits, (rows, columns))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: packed weights of {unit} are damaged: {error}") from None
    return found


def bits_of(folder: Path) -> int | None:
    """Bits a weight of a compressed folder; None if it is pruned only. Raises InputError if it is none."""
    return CompressionSpec.from_json(checkpoint.read_manifest(folder)["spec"]).bits


def grids(folder: Path, codes: bool = False) -> dict[str, dict[str, Tensor]]:
    """The packed matrices of a compressed folder: unit -> its parts without values, and without codes unless asked for.

    Raises InputError if it is none.
    """
    found, bits, left_out = {}, bits_of(folder), ("values",) if codes else ("codes", "values")
    for path in block_files(folder):
        for unit, parts in _matrices(path, checkpoint.read_tensors(path), bits).items():
            found[unit] = {name: part for name, part in parts.items() if name not in left_out}
    return found


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


def _moved(unit: str, parts: dict[str, Tensor], bits: int, steps: Tensor) -> Tensor:
    """The packed codes of a matrix, each moved by so many steps (out, in). Raises InputError if one leaves its grid."""
    codes = full_codes(parts, bits)
    if codes.shape != steps.shape:
        raise InputError(f"{unit} has {_shape(codes)} codes here, the changes {_shape(steps)}")
    codes = codes + steps.to(torch.int16)
    if codes.min() < 0 or codes.max() >= 2**bits:
        raise InputError(f"codes of {unit} would leave their grid: they were learned on another copy")
    if "mask" in parts:
        codes = codes[kept_of(parts)]
    return pack_bits(codes, bits)


def changed_parts(
    unit: str, parts: dict[str, Tensor], changes: Mapping[str, Tensor], bits: int | None
) -> dict[str, Tensor]:
    """One packed matrix with its changes folded in. Every part keeps its dtype and shape."""
    parts, m = dict(parts), changes.get(f"scale:{unit}")
    if "scale" in parts:
        if f"code:{unit}" in changes:
            assert bits is not None
            parts["codes"] = _moved(unit, parts, bits, changes[f"code:{unit}"])
        if m is not None:
            if m.shape != parts["scale"].shape:
                raise InputError(f"{unit} has {_shape(parts['scale'])} scales here, the changes {_shape(m)}")
            parts["scale"] = (parts["scale"].float() * m).to(parts["scale"].dtype)
        return parts
    rows, columns = parts["shape"].tolist()
    kept = kept_of(parts)
    values = parts["values"].float()
    if f"value:{unit}" in changes:
        values = values + changes[f"value:{unit}"][kept]
    if m is not None:
        values = values * m.expand(rows, columns)[kept]
    if f"left:{unit}" in changes:
        values = values + (changes[f"left:{unit}"] @ changes[f"right:{unit}"])[kept]
    parts["values"] = values.to(parts["values"].dtype)
    return parts


def fold(
    folder: Path,
    out: Path,
    changes: Mapping[str, Tensor],
    made_from: dict[str, Any],
    also: Callable[[Path], None] = lambda new: None,
) -> dict[str, Any]:
    """Write the compressed model in ``folder``, with ``changes`` folded in, to the new folder ``out``.

    Returns the manifest, which says under ``tuned`` what was changed and how it was learned. ``also`` may write more
    into the new folder, before it gets its name. Raises InputError if ``out`` exists, the disk refuses, or a change is
    not finite in the folder's half precision.
    """
    manifest, bits = checkpoint.read_manifest(folder), bits_of(folder)
    config, names = read_json(folder / "config.json", finite=False), sorted(changes)
    learned = text_fingerprint(str(config.get(TUNED)), *names, tensor_fingerprint(*(changes[name] for name in names)))
    with whole_folder(out) as new:
        for path in block_files(folder):
            stored = checkpoint.read_tensors(path)
            tensors = {name: tensor for name, tensor in stored.items() if "::" not in name}
            for name in tensors:
                if f"norm:{name}" in changes:
                    tensors[name] = changes[f"norm:{name}"].to(tensors[name].dtype)
            for unit, parts in _matrices(path, stored, bits).items():
                tensors |= {f"{unit}::{part}": t for part, t in changed_parts(unit, parts, changes, bits).items()}
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise InputError(f"{name} is not finite any more: learn with a smaller rate (lr=)")
            with tensor_files.opened(path) as file:
                about = file.metadata()
            with whole(new / path.name) as temporary:
                save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=about)
        for path in folder.iterdir():  # configuration and tokenizer
            if path.is_file() and path.suffix != ".safetensors" and path.name != MANIFEST:
                (new / path.name).write_bytes(path.read_bytes())
        write_json(config | {TUNED: learned}, new / "config.json")
        size = sum((new / path.name).stat().st_size for path in block_files(folder))
        tag = f"{manifest['tag']}+{'+'.join(made_from['what'])}-{learned[:DIGITS]}"
        manifest |= {"tag": tag, "bytes": size, "tuned": made_from, "versions": versions("torch")}
        write_json(manifest, new / MANIFEST)
        also(new)
    return manifest


def changes_between(before: Path, after: Path) -> dict[str, Tensor]:
    """What turned the compressed folder ``before`` into the tuned one ``after``, to fold into another compression.

    Scales come as factors, norms as they are. A grid whose scale is 0 keeps it: its factor is 1. Raises InputError if
    the folders hold other matrices, or if codes or kept values were changed, which suit their own copy only.
    """
    found = dict[str, Tensor]()
    for path in block_files(before):
        old, new = (checkpoint.read_tensors(folder / path.name) for folder in (before, after))
        if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
            raise InputError(f"{after} was not tuned from {before}: they hold other tensors")
        for name, tensor in old.items():
            unit, packed, part = name.partition("::")
            if part == "scale":
                first, last = tensor.float(), new[name].float()
                found[f"scale:{unit}"] = torch.where(first == 0, torch.ones(()), last / first)
            elif not packed and not torch.equal(tensor, new[name]):
                found[f"norm:{name}"] = new[name].float()
            elif not torch.equal(tensor, new[name]):
                raise InputError(f"{after} has other {part} of {unit} than {before}: only scales and norms carry over")
    return found


def tuned_from(out: Path) -> dict[str, Any] | None:
    """What the tuned folder ``out`` was made from; None if there is none. Raises InputError if ``out`` is another."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        made_from = read_json(out / MANIFEST, finite=False).get("tuned")
        if isinstance(made_from, dict):
            return made_from
    except InputError:
        pass
    raise InputError(f"{out} exists and is no tuned model: choose another folder")
