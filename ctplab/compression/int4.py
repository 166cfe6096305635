"""Torch's own products of a few bfloat16 tokens with 4-bit weights: one kernel for CPUs, one for NVIDIA GPUs.

Both compute x Wᵀ with w = scale · (code - 8) + offset in groups of adjacent columns. Each reads the codes in its own
order. They are fast because they read only four bits per weight, so they pay off for few tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.compression.packing import full_codes, unpack

TOKENS = {"cpu": 128, "cuda": 16}
"""The largest number of tokens for the kernel. CPU: 50 times faster than unpacking at 1 token, equal at 128 (measured).
CUDA: slower than bfloat16 products from about 64 tokens on, by the tables of pytorch/ao (prototype/hqq); we did not
measure it."""
GROUPS = (256, 128, 64, 32)
CHECK = 0.02
"""The largest error that rounding scales and offsets to bfloat16 may cause, as a share of the largest output."""


@dataclass(frozen=True)
class Int4:
    """4-bit weights in the layout that a kernel reads."""

    codes: Tensor
    affine: Tensor  # (in / group, out, 2) bfloat16: scale and offset
    group: int

    def product(self, x: Tensor) -> Tensor:
        """x (tokens, in) bfloat16 -> (tokens, out)."""
        ops = torch.ops.aten
        kernel = ops._weight_int4pack_mm_for_cpu if x.device.type == "cpu" else ops._weight_int4pack_mm
        return kernel(x, self.codes, self.group, self.affine)


def group_size(parts: dict[str, Tensor], bits: int | None) -> int:
    """The group size for the kernels, or 0 if they do not take such weights."""
    if bits != 4 or "mask" in parts or "group" in parts or parts["shape"][0] % 16:
        return 0
    own = int(parts["shape"][1]) // parts["scale"].shape[1]  # with one grid per row: any size that divides the columns
    return next((size for size in GROUPS if own % size == 0), 0)


def runs_on(device: torch.device) -> bool:
    """Whether ``device`` is a CPU, or an NVIDIA GPU from Ampere on."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"


def prepare(parts: dict[str, Tensor], group: int) -> Int4:
    """Put the codes into the kernel's order, on the device that holds the parts."""
    repeats = int(parts["shape"][1]) // group // parts["scale"].shape[1]
    scale, zero = (parts[name].float().repeat_interleave(repeats, 1) for name in ("scale", "zero"))
    affine = torch.stack([scale, (8 - zero) * scale], -1).transpose(0, 1).contiguous().bfloat16()
    codes = full_codes(parts, 4)
    if codes.device.type == "cpu":
        ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    else:
        ordered = _cuda_order(codes)
    return Int4(ordered, affine, group)


def _cuda_order(codes: Tensor) -> Tensor:
    """(out, in) codes -> int32 (out / 8, in / (16 · tiles), 32, tiles / 2), even columns in the high four bits."""
    tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (16 * tiles) == 0)  # groups of 32 and up: 2 fits
    return torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], tiles)


def agrees(int4: Int4, parts: dict[str, Tensor]) -> bool:
    """Whether the kernel's product of four tokens agrees with that of the unpacked weights, within ``CHECK``."""
    dense = unpack(parts, 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, dense.shape[1], generator=generator).to(dense.device, torch.bfloat16)
    expected = x.float() @ dense.T
    return bool((int4.product(x).float() - expected).abs().max() <= CHECK * expected.abs().max())
