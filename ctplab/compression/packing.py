"""Pack codes and masks into one little-endian bit stream, and back. Value i occupies bits i·b .. i·b + b - 1."""

import torch
from torch import Tensor

from ctplab.compression.obs import Solution
from ctplab.errors import InputError


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers (any shape, each < 2^bits, bits <= 8) into bytes, (ceil(n · bits / 8),) uint8.

    Eight values take exactly ``bits`` bytes. They go into one 64-bit word, whose low bytes are kept.
    """
    n = values.numel()
    eights = torch.nn.functional.pad(values.flatten().to(torch.uint8), (0, -n % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=values.device)
    for i in range(8):  # 8-bit values reach the sign bit, which stores data like any other
        words |= eights[:, i].to(torch.int64) << (i * bits)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].flatten()[: -(-n * bits // 8)]


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of :func:`pack_bits`: the first ``n`` values, (n,) uint8."""
    count = -(-n // 8)
    low = torch.nn.functional.pad(packed[: count * bits], (0, max(0, count * bits - len(packed)))).view(count, bits)
    words = torch.nn.functional.pad(low, (0, 8 - bits)).view(torch.int64)[:, 0]
    values = torch.empty(count, 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        values[:, i] = (words >> (i * bits)) & (2**bits - 1)
    return values.flatten()[:n]


def pack(solution: Solution, bits: int | None) -> dict[str, Tensor]:
    """The tensors that represent a compressed matrix on disk and in ``PackedLinear``.

    ``shape``, ``codes`` (kept codes only, packed), ``scale`` (out, groups), ``zero`` (the same, uint8), ``group``
    (only if columns are out of order), ``mask`` (one bit per weight, 1 = kept), ``values`` (kept weights in fp16, if
    not quantised). Raises InputError if a kept weight exceeds half precision.
    """
    parts: dict[str, Tensor] = {"shape": torch.tensor(solution.W_hat.shape, dtype=torch.int64)}
    kept = None if solution.mask is None else ~solution.mask
    if kept is not None:
        parts["mask"] = pack_bits(kept, 1)
    if bits and solution.codes is not None and solution.scale is not None and solution.zero is not None:
        codes = solution.codes.flatten() if kept is None else solution.codes[kept]
        parts["codes"] = pack_bits(codes, bits)
        half = solution.scale.half()
        exact = torch.equal(half.to(solution.scale.dtype), solution.scale)
        parts["scale"] = half if exact else solution.scale
        parts["zero"] = solution.zero.to(torch.uint8)
        if solution.group is not None:
            in_order = group_of(parts)
            if not torch.equal(in_order, solution.group.to(in_order)):
                parts["group"] = solution.group.to(torch.int32)
    elif kept is not None:
        values = solution.W_hat[kept].half()
        if not torch.isfinite(values).all():
            raise InputError("kept weights exceed half precision")
        parts["values"] = values
    return {name: tensor.contiguous() for name, tensor in parts.items()}


def full_codes(parts: dict[str, Tensor], bits: int) -> Tensor:
    """All codes, (out, in) uint8. A pruned weight gets its grid's zero, which decodes to 0."""
    rows, columns = parts["shape"].tolist()
    if "mask" not in parts:
        return unpack_bits(parts["codes"], bits, rows * columns).view(rows, columns)
    kept = kept_of(parts).flatten()
    codes = parts["zero"][:, group_of(parts)].flatten()
    codes[kept] = unpack_bits(parts["codes"], bits, int(kept.sum()))
    return codes.view(rows, columns)


def kept_of(parts: dict[str, Tensor]) -> Tensor:
    """The mask of a pruned matrix, (out, in) bool: True for weights that are kept."""
    rows, columns = parts["shape"].tolist()
    return unpack_bits(parts["mask"], 1, rows * columns).view(rows, columns).bool()


def group_of(parts: dict[str, Tensor]) -> Tensor:
    """The group of every column, (in,). If none is stored, groups are equal runs of adjacent columns."""
    if "group" in parts:
        return parts["group"].long()
    columns, groups = int(parts["shape"][1]), parts["scale"].shape[1]
    return torch.arange(columns, device=parts["scale"].device) // (columns // groups)


def unpack(parts: dict[str, Tensor], bits: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dense matrix (out, in) that ``parts`` represent."""
    rows, columns = parts["shape"].tolist()
    if "values" in parts:
        kept = kept_of(parts).flatten()
        flat = torch.zeros(rows * columns, dtype=dtype, device=parts["values"].device)
        flat[kept] = parts["values"].to(dtype)
        return flat.view(rows, columns)
    assert bits is not None
    codes = full_codes(parts, bits)
    scale, zero = parts["scale"].float(), parts["zero"].float()
    if "group" in parts:
        group = group_of(parts)
        return (scale[:, group] * (codes.float() - zero[:, group])).to(dtype)
    grouped = codes.view(rows, scale.shape[1], -1).float()  # (out, groups, columns a group)
    return grouped.sub_(zero[..., None]).mul_(scale[..., None]).view(rows, columns).to(dtype)


def packed_bytes(parts: dict[str, Tensor]) -> int:
    """Bytes of the parts, as stored."""
    return sum(tensor.numel() * tensor.element_size() for tensor in parts.values())
