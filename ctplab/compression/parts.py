"""Whether the tensors of a packed matrix, read from a file, can be unpacked: dtypes, shapes, finite grids."""

import torch
from torch import Tensor

from ctplab.compression.packing import unpack_bits

DTYPES = {
    "shape": (torch.int64,),
    "codes": (torch.uint8,),
    "mask": (torch.uint8,),
    "zero": (torch.uint8,),
    "group": (torch.int32,),
    "scale": (torch.float16, torch.float32),
    "values": (torch.float16,),
}


def check_parts(parts: dict[str, Tensor], bits: int | None, shape: tuple[int, int]) -> None:
    """Raise ValueError with the reason if ``parts`` are no packed matrix of ``shape`` (out, in) with codes of ``bits``.

    What passes unpacks without an error and to finite numbers.
    """
    for name, tensor in parts.items():
        if tensor.dtype not in DTYPES.get(name, ()):
            raise ValueError(f"{name} is not known as {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite numbers")
    if "shape" not in parts or tuple(parts["shape"].flatten().tolist()) != shape:
        raise ValueError(f"its shape is not {shape[0]} x {shape[1]}")
    (rows, columns), kept = shape, shape[0] * shape[1]
    if "mask" in parts:
        _length(parts, "mask", -(-rows * columns // 8))
        kept = int(unpack_bits(parts["mask"], 1, rows * columns).sum())
    if "values" in parts:
        _need(parts, "mask")
        _length(parts, "values", kept)
        return
    if bits is None:
        raise ValueError("it has codes, but the spec has no bits")
    _length(parts, "codes", -(-kept * bits // 8))
    _need(parts, "scale", "zero")
    groups = parts["scale"].shape[-1]
    if groups < 1 or any(parts[name].shape != (rows, groups) for name in ("scale", "zero")):
        raise ValueError("scale and zero are not (rows, groups)")
    if "group" in parts:
        _length(parts, "group", columns)
        if int(parts["group"].min()) < 0 or int(parts["group"].max()) >= groups:
            raise ValueError("group names a grid that is not there")
    elif columns % groups:
        raise ValueError(f"{columns} columns are no {groups} equal groups")


def _need(parts: dict[str, Tensor], *names: str) -> None:
    for name in names:
        if name not in parts:
            raise ValueError(f"{name} is missing")


def _length(parts: dict[str, Tensor], name: str, length: int) -> None:
    _need(parts, name)
    if parts[name].shape != (length,):
        raise ValueError(f"{name} has the shape {tuple(parts[name].shape)}, not ({length},)")
