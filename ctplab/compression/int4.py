"""Torch's own products of a few bfloat16 tokens with 4-bit weights: one kernel for CPUs, one for NVIDIA GPUs.

Both compute x Wᵀ with w = scale · (code - 8) + offset, in groups of neighbouring columns, from codes in an order of
their own. Their speed is that of reading four bits a weight, so they pay for few tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.compression.packing import full_codes, unpack

TOKENS = {"cpu": 128, "cuda": 16}
"""Up to how many tokens the kernel is used. CPU: 50 times faster than unpacking at one token, even at 128 (measured).
CUDA: others' tables see it lose to bfloat16 products from about 64 (pytorch/ao, prototype/hqq); not measured by us."""
GROUPS = (256, 128, 64, 32)
CHECK = 0.02
"""What rounding scales and offsets to bfloat16 may cost, as a share of the largest output."""


@dataclass(frozen=True)
class Int4:
    """4-bit weights as a kernel wants them."""

    codes: Tensor
    affine: Tensor  # (in / group, out, 2) bfloat16: scale and offset
    group: int

    def product(self, x: Tensor) -> Tensor:
        """x (tokens, in) bfloat16 -> (tokens, out)."""
        ops = torch.ops.aten
        kernel = ops._weight_int4pack_mm_for_cpu if x.device.type == "cpu" else ops._weight_int4pack_mm
        return kernel(x, self.codes, self.group, self.affine)


def group_size(parts: dict[str, Tensor], bits: int | None) -> int:
    """The group size for the kernels; 0 where they do not take such weights."""
    if bits != 4 or "mask" in parts or "group" in parts or parts["shape"][0] % 16:
        return 0
    own = int(parts["shape"][1]) // parts["scale"].shape[1]  # one grid a row: any size that divides the columns
    return next((size for size in GROUPS if own % size == 0), 0)


def runs_on(device: torch.device) -> bool:
    """A CPU, or an NVIDIA GPU from Ampere on."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"


def prepare(parts: dict[str, Tensor], group: int) -> Int4:
    """Put the codes into the kernel's order, on the device where the parts are."""
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
    """(out / 8, in / (16 · tiles), 32, tiles / 2) int32 of (out, in) codes: even columns in the high four bits."""
    tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (16 * tiles) == 0)  # groups of 32 and up: 2 fits
    return torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], tiles)


def agrees(int4: Int4, parts: dict[str, Tensor]) -> bool:
    """Whether the kernel's product is that of the unpacked weights, tried on four tokens."""
    dense = unpack(parts, 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, dense.shape[1], generator=generator).to(dense.device, torch.bfloat16)
    expected = x.float() @ dense.T
    return bool((int4.product(x).float() - expected).abs().max() <= CHECK * expected.abs().max())
