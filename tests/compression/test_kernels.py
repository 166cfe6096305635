"""Triton's kernels against the code that they replace: on a card as compiled, elsewhere in Triton's interpreter."""

import pytest
import torch

from ctplab.compression import columns
from ctplab.compression.obs import solve
from ctplab.specs import CompressionSpec

pytest.importorskip("triton", reason="no Triton here: pip install 'ctplab[dev]' on Linux")

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
