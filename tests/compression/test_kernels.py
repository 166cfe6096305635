"""Triton's kernels against the code that they replace: on a card as compiled, elsewhere in Triton's interpreter."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctplab.compression import columns, linear, packing
from ctplab.compression.obs import solve
from ctplab.specs import CompressionSpec

pytest.importorskip("triton", reason="no Triton here: pip install 'ctplab[dev]' on Linux")

from ctplab.compression.kernels import product, unpacking

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
SAME = 0.99 if CARD else 1.0
"""The share of equal codes. A card sums in another order, so a value on a rounding edge may fall to the other side."""


def problem(rows=18, columns=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * columns, columns, generator=generator)
    X = X + X @ torch.randn(columns, columns, generator=generator) / (2 * columns**0.5)  # correlated
    W = torch.randn(rows, columns, generator=generator)
    W[3] = W[3].abs()  # a row without negatives
    W[5, 32:] = 0  # an empty group
    return W.to(DEVICE), (2 * X.T @ X / len(X)).to(DEVICE)


SETTINGS = [
    {"bits": 4},
    {"bits": 3, "group_size": 32},
    {"bits": 4, "group_size": 128, "columns": 160},
    {"bits": 3, "group_size": 24, "columns": 72},  # no power of two: the grids are fitted outside the kernel
    {"bits": 4, "group_size": 64, "block": 32},  # a group spans two blocks
    {"bits": 3, "group_size": 32, "symmetric": True},
    {"bits": 3, "group_size": 32, "act_order": True},
    {"bits": 3, "group_size": 32, "act_order": True, "static_groups": True},
    {"bits": 3, "group_size": 32, "reference": True},
    {"bits": 2, "group_size": 64, "mse": True},
    {"bits": 2, "mse": True},
    {"sparsity": 0.5},
    {"sparsity": 0.5, "reference": True},
    {"pattern": "2:4"},
    {"pattern": "4:8", "bits": 4},
    {"pattern": "1:3", "columns": 60},
    {"bits": 4, "sparsity": 0.5, "act_order": True},
    {"bits": 4, "sparsity": 0.6, "group_size": 32, "block": 200},
]


def name(settings):
    shown = CompressionSpec(**{key: value for key, value in settings.items() if key != "columns"}).tag
    return "-".join([shown, *(f"{key}{settings[key]}" for key in ("columns", "block") if key in settings)])


@pytest.mark.parametrize("settings", SETTINGS, ids=name)
def test_the_kernel_fixes_columns_as_the_loop_does(settings, monkeypatch):
    W, H = problem(columns=settings.get("columns", 64))
    spec = CompressionSpec(**{name: value for name, value in settings.items() if name != "columns"})
    found = []
    for on_card in (False, True):
        monkeypatch.setattr(columns, "usable", lambda device, on_card=on_card: on_card)
        found.append(solve(W, H, spec, (8, 10)))
    loop, kernel = found
    for name in ("codes", "mask"):
        expected, got = getattr(loop, name), getattr(kernel, name)
        assert (expected is None) == (got is None)
        assert expected is None or (expected == got).float().mean() >= SAME
    # fp32 sums in another order
    same = slice(None) if loop.codes is None else (loop.codes == kernel.codes)
    torch.testing.assert_close(kernel.W_hat[same], loop.W_hat[same], rtol=2e-3, atol=2e-3)
    if loop.scale is not None:
        torch.testing.assert_close(kernel.scale, loop.scale, rtol=2e-3, atol=1e-3)
        assert (kernel.zero == loop.zero).float().mean() >= SAME


PACKED = [
    {"bits": 2},
    {"bits": 3},
    {"bits": 3, "group_size": 16},
    {"bits": 4, "group_size": 16, "act_order": True},
    {"bits": 8},
    {"sparsity": 0.5},
    {"bits": 3, "sparsity": 0.5},
    {"bits": 4, "sparsity": 0.75, "group_size": 16, "act_order": True},
]


@pytest.mark.parametrize("columns", [48, 144])
@pytest.mark.parametrize("settings", PACKED, ids=name)
def test_packed_weights_by_kernels_are_the_unpacked_ones(settings, columns, monkeypatch):
    """A dense copy to the bit; products of a few tokens, of many, and backward, within fp32 sums of 144 numbers."""
    spec = CompressionSpec(**settings)
    W, H = problem(columns=columns)
    parts = packing.pack(solve(W, H, spec), spec.bits)
    layer = linear.PackedLinear(parts, spec.bits, torch.ones(len(W), device=DEVICE))
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(linear, "usable", lambda device: True)
    for dtype in (torch.float32, torch.bfloat16) if CARD else (torch.float32,):  # the interpreter truncates bfloat16
        expected = packing.unpack(parts, spec.bits, dtype)
        assert torch.equal(layer.dense(dtype), expected)
    dense = packing.unpack(parts, spec.bits)
    for tokens in (1, 5, 16, 40):
        x = torch.randn(tokens, columns, generator=generator).to(DEVICE)
        torch.testing.assert_close(layer(x), x @ dense.T + 1, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 3, columns, generator=generator).to(DEVICE).requires_grad_(True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x.detach() @ dense.T + 1) @ dense, rtol=1e-4, atol=1e-3)


ROWS, COLUMNS = 6, 200  # no whole tile of rows; 25 eights, the last tile of which is not full
GRIDS = {"a-row": None, "in-order": 40, "odd-size": 20, "any-order": -5}  # -5: five groups, columns in any order


def packed_at_random(bits, pruned, size, columns=COLUMNS):
    """Parts as ``packing.pack`` makes them, and more kinds of them than solving gives: 80 % of the weights kept."""
    generator = torch.Generator().manual_seed(0)
    parts, kept = {"shape": torch.tensor([ROWS, columns])}, ROWS * columns
    if pruned:
        mask = torch.rand(kept, generator=generator) < 0.8
        parts["mask"], kept = packing.pack_bits(mask, 1), int(mask.sum())
    if bits is None:
        return parts | {"values": torch.randn(kept, generator=generator).half().to(DEVICE)}
    parts["codes"] = packing.pack_bits(torch.randint(2**bits, (kept,), generator=generator), bits)
    groups = 1 if size is None else -size if size < 0 else columns // size
    parts["scale"] = torch.randn(ROWS, groups, generator=generator)
    parts["zero"] = torch.randint(2**bits, (ROWS, groups), generator=generator).to(torch.uint8)
    if size is not None and size < 0:
        parts["group"] = torch.randint(groups, (columns,), generator=generator, dtype=torch.int32)
    return {key: part if key == "shape" else part.contiguous().to(DEVICE) for key, part in parts.items()}


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("pruned", [False, True], ids=["all", "pruned"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, None])
def test_kernels_take_every_kind_of_packed_weights(bits, pruned, grids, monkeypatch):
    """Rows of several tiles, too: with eight eights a tile. Copies to the bit; products within fp32 sums of 200."""
    if bits is None and not (pruned and grids == "a-row"):
        pytest.skip("weights without codes are pruned and have no grids")
    monkeypatch.setattr(unpacking, "TILE", 8)
    parts = packed_at_random(bits, pruned, GRIDS[grids])
    found = unpacking.matrix(parts, bits, (ROWS, COLUMNS))
    assert found is not None
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(unpacking.dense(found, dtype), packing.unpack(parts, bits, dtype))
    W = packing.unpack(parts, bits)
    for tokens in (1, 3, 11):  # 3 and 11: not full programs of either kernel
        if not product.takes(tokens, found):
            continue
        x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        expected = x @ W.T
        error = (product.product(x, found) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()


def test_kept_weights_are_counted_up_to_each_tile():
    mask = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) < 0.5
    counted = unpacking.kept_before(packing.pack_bits(mask, 1), (ROWS, COLUMNS), 8)
    for row in range(ROWS):
        for tile in range(4):
            assert counted[row, tile] == mask[:row].sum() + mask[row, : 64 * tile].sum()


def test_rows_that_are_no_whole_eights_are_unpacked(monkeypatch):
    monkeypatch.setattr(linear, "usable", lambda device: True)
    parts = packed_at_random(3, True, None, columns=60)
    layer, x = linear.PackedLinear(parts, 3, None), torch.randn(2, 60, device=DEVICE)
    W = packing.unpack(parts, 3)
    assert unpacking.matrix(parts, 3, (ROWS, 60)) is None
    assert torch.equal(layer.dense(torch.float32), W)
    torch.testing.assert_close(layer(x), x @ W.T, rtol=1e-5, atol=1e-4)  # fp32


def test_a_layer_whose_parts_change_gives_the_new_products(monkeypatch):
    """A buffer replaced, all loaded into place, the layer copied or moved: nothing made from the old parts stays."""
    monkeypatch.setattr(linear, "usable", lambda device: True)
    parts, x = packed_at_random(3, True, None), torch.randn(2, COLUMNS, device=DEVICE)
    layer = linear.PackedLinear({key: part.clone() for key, part in parts.items()}, 3, None)
    before = layer(x)
    layer.scale = 2 * parts["scale"]
    torch.testing.assert_close(layer(x), 2 * before, rtol=1e-5, atol=1e-4)  # fp32
    other = parts | {"mask": parts["mask"].flip(0).contiguous()}  # as many kept, at other places
    layer.load_state_dict(other)
    torch.testing.assert_close(layer(x), x @ packing.unpack(other, 3).T, rtol=1e-5, atol=1e-4)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer._matrix is not None
    layer.to("cpu")
    assert layer._matrix is None  # it would keep the parts on the card


@pytest.mark.slow
def test_every_kernel_compiles_for_cards_of_nvidia_and_amd(tmp_path):
    """What the interpreter does not see: types, shapes of tensor cores. Needs a compiler and no card."""
    script = Path(__file__).with_name("compile_kernels.py")
    outside = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    outside["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, script], env=outside, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 34, done.stderr[-800:]


class FakeKernel:
    """Stands in for a compiled kernel: it remembers how it was launched, through Triton's look-up or past it."""

    arg_names = tuple(product._few.arg_names)

    def __init__(self, found=True):
        self.looked_up, self.launched, self.found = [], [], found

    def __getitem__(self, grid):
        if len(grid) == 3:
            return lambda *arguments: self.launched.append((grid, arguments))
        return self.look_up

    def look_up(self, *arguments, **settings):
        self.looked_up.append((arguments, settings))
        return self if self.found else None


@pytest.fixture
def w3():
    codes = torch.zeros(ROWS * COLUMNS * 3 // 8, dtype=torch.uint8, device=DEVICE)
    grid = {"scale": torch.ones(ROWS, 1, device=DEVICE).half(), "zero": torch.zeros(ROWS, 1, device=DEVICE).byte()}
    return unpacking.matrix({"codes": codes} | grid, 3, (ROWS, COLUMNS))


def test_a_kernel_is_looked_up_once_for_each_kind_of_arguments(w3):
    kernel, x = FakeKernel(), torch.zeros(1, COLUMNS, device=DEVICE)
    parts, tile = (x, x, *w3.tensors, 1, *w3.sizes), {"R": 4, "num_warps": 4, "T": 1}
    for key in ("one", "one", "other", "one"):
        unpacking.launch(w3, key, kernel, 7, parts, tile)
    assert [len(kernel.looked_up), len(kernel.launched)] == [2, 2]
    assert kernel.looked_up[0] == (parts, w3.kind | tile)
    whole = tuple((w3.kind | tile)[name] for name in ("BITS", "MASKED", "SIZE", "E", "R", "T"))
    assert kernel.launched[0] == ((7, 1, 1), parts + whole)
    unpacking.launch(copy.deepcopy(w3), "one", kernel, 7, parts, tile)
    assert len(kernel.looked_up) == 3, "a copy has tensors of its own"
    interpreted = FakeKernel(found=False)
    for _ in range(2):
        unpacking.launch(w3, "interpreted", interpreted, 7, parts, tile)
    assert len(interpreted.looked_up) == 2 and not interpreted.launched
    pickle.loads(pickle.dumps(w3))


@pytest.mark.parametrize("kernel", [product._few, product._more, unpacking._dense], ids=["few", "more", "dense"])
def test_a_launch_past_the_look_up_passes_what_triton_passes(kernel, w3):
    """Triton's own launch ends with all arguments in the order of the signature, constants too."""
    jit = pytest.importorskip("triton.runtime.jit")
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    compiled = jit.JITFunction(kernel.fn)
    binder = jit.create_function_from_signature(
        compiled.signature, compiled.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    x = torch.zeros(1, COLUMNS, device=DEVICE)
    parts = (x, *w3.tensors, *w3.sizes) if kernel is unpacking._dense else (x, x, *w3.tensors, 1, *w3.sizes)
    settings = w3.kind | {"R": 4, "num_warps": 4} | ({} if kernel is unpacking._dense else {"T": 1})
    bound = list(binder(*parts, **settings)[0].values())
    ours = [*parts, *(settings[name] for name in compiled.arg_names[len(parts) :])]
    assert len(bound) == len(ours) == len(compiled.arg_names)
    assert all(a is b for a, b in zip(bound, ours, strict=True))
    assert list(kernel.arg_names) == list(compiled.arg_names)
