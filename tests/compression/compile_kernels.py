"""Compile every variant of our Triton kernels for NVIDIA's Ampere and Hopper and for AMD's MI300: needs no card.

python tests/compression/compile_kernels.py         prints one line a variant; not under TRITON_INTERPRET
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ctplab.compression.kernels import columns, gated, product, unpacking

TARGETS = (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64))
TYPES = {"Codes": "*u8", "Mask": "*u8", "Zero": "*u8", "Scale": "*fp16", "Group": "*i32"}
TYPES |= {"Source": "*i32", "Starts": "*i32", "maxq": "fp32"}
PLAIN = {
    "GRID": 1,
    "MASK": 0,
    "M": 1,
    "HALF": False,
    "SYMMETRIC": False,
    "SHRINKS": 0,
    "NORM": 2.4,
    "BLOCK": 128,
    "R": 16,
}
FIX = [
    {},
    {"GRID": 0, "MASK": 1, "HALF": True},
    {"GRID": 2, "MASK": 1},
    {"GRID": 3, "SYMMETRIC": True},
    {"GRID": 3, "SHRINKS": 80},
    {"GRID": 3, "MASK": 2, "M": 4},
    {"GRID": 0, "MASK": 2, "M": 8, "HALF": True},
]
PACKED = [{"BITS": bits, "MASKED": False, "SIZE": size} for bits, size in ((2, 128), (3, 0), (4, -1), (8, 32))]
PRUNED = [{"BITS": bits, "MASKED": True, "SIZE": size} for bits, size in ((0, 0), (2, -1), (3, 128), (4, 0), (8, 0))]
FEW, MORE = (
    {key: value for key, value in tile.items() if len(key) == 1} for tile in (product.FEW_TILE, product.MORE_TILE)
)


def compiled(kernel, constants: dict, floats: str) -> None:
    """Compile ``kernel`` for every target; tensors that TYPES does not name are of type ``floats``."""
    small = {name: "i32" if name.islower() else floats for name in kernel.arg_names}
    types = {name: "constexpr" if name in constants else TYPES.get(name, small[name]) for name in kernel.arg_names}
    if "Err" in types:  # the column loop's grids are in fp32
        types |= {"Scale": "*fp32", "Zero": "*fp32"}
    if constants.get("BITS") == 0:
        types |= {"Codes": "*fp16"}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for target in TARGETS:
        triton.compile(ASTSource(kernel, types, constexprs=values), target=target)
    print(kernel.__name__, floats, constants, flush=True)


for changes in FIX:
    compiled(columns._fix, PLAIN | changes, "*fp32")
for settings in PACKED + PRUNED:
    tile = settings | {"E": unpacking.TILE}
    compiled(unpacking._dense, tile | {"R": unpacking.ROWS}, "*bf16")
    compiled(product._few, tile | FEW | {"T": 1}, "*bf16")
for settings in PACKED:
    compiled(product._more, settings | MORE, "*bf16")
compiled(product._few, PRUNED[3] | {"E": unpacking.TILE, "T": 4} | FEW, "*bf16")
compiled(product._few, PACKED[0] | {"E": unpacking.TILE, "T": 4} | FEW, "*fp32")
compiled(product._more, PACKED[0] | MORE, "*fp32")
for kernel in (gated._forward, gated._backward):
    compiled(kernel, {"BLOCK": 1024}, "*bf16")
