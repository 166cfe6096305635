"""What a compression will take, said before it begins: its size on paper, its time from one real batch of windows."""

import time
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench
from ctplab.app.views import size
from ctplab.models.anatomy import as_matrix, blocks, linears
from ctplab.prompts import prefix

PROBE = 4  # windows that really run
GRID = 24  # bits of a scale and a zero
PASSES = 2  # of every window through every block: one for the Hessians, one with the new weights
SLOWER = 2  # times: the solver's products against a forward pass's


def stored_bits(spec: ctp.CompressionSpec, columns: int) -> float:
    """Bits that a weight of a matrix with so many columns takes: its code if it is kept, the mask, scale and zero."""
    codes = (spec.bits or 16) * (1 - spec.sparsity) + (1 if spec.sparsity else 0)
    return codes + (GRID / (spec.group_size or columns) if spec.bits else 0)


def expected(bench: Bench, name: str, spec: ctp.CompressionSpec, corpus: str, samples: Any, seq_len: Any) -> str:
    """Size and time of compressing the loaded model ``name``, in words. Raises InputError."""
    full, n = bench.model(name), limits.whole(samples, "windows", 1, 4096)
    shapes = [as_matrix(layer).shape for _, block in blocks(full.model) for layer in linears(block).values()]
    inside = sum(rows * columns for rows, columns in shapes)
    weights = sum(part.numel() for part in full.model.parameters())
    rest = int(full.about.get("bytes") or 2 * weights) * (1 - inside / weights)
    packed = sum(rows * columns * stored_bits(spec, columns) / 8 for rows, columns in shapes)
    windows = bench.corpus(corpus, full.tokenizer, seq_len).train.sample(min(n, PROBE), 0)
    arm = ctp.Arm("full", full.model, prefix.none(full.model))
    with bench.turns.turn():
        began = time.perf_counter()
        ctp.window_scores(arm, windows)
        pace = (time.perf_counter() - began) / windows.numel()  # seconds a token
    solver = sum(2 * (columns**3 + rows * columns**2) for rows, columns in shapes)
    seconds = pace * (PASSES * n * windows.shape[1] + SLOWER * solver / (2 * weights))
    return (
        f"About **{size(int(packed + rest))}** on disk: {inside / 1e6:.1f} M weights to compress, "
        f"{8 * packed / inside:.2f} bits each, and {size(int(rest))} that stay as they are. About **{seconds:.0f} s**, "
        f"from {len(windows)} of {n} windows on this machine as busy as it is now; blocks that are done are kept."
    )
