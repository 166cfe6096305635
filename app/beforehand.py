"""What a compression or a training will take, said before it begins: sizes on paper, times from a few real steps."""

import resource
import sys
import time
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench, Chosen
from ctplab.app.views import size
from ctplab.app.ways import PromptWay, TunedWay, Wanted, check_weights, lesson, way
from ctplab.models.anatomy import as_matrix, blocks, linears
from ctplab.prompts import prefix

PROBE = 4  # windows that really run
STEPS = 3  # that really run
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


def peak_bytes() -> int:
    """The most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def taken(learning: PromptWay | TunedWay) -> str:
    """What the result takes on disk, and at inference."""
    rows, parts = learning.rows, []
    if isinstance(learning, TunedWay):
        parts.append(f"the tuned model **{size(int(learning.lesson.small.about['bytes']))}**, as the one before")
    if rows is not None:  # as they are and as they began, in fp32
        parts.append(f"the prompt **{size(2 * 4 * rows.numel())}**, and {len(rows)} positions of every input")
    return " On disk: " + "; ".join(parts) + "."


def training(bench: Bench, chosen: Chosen, wanted: Wanted) -> str:
    """Time, memory and bytes of learning what is ``wanted``, in words, from a few real steps. Raises InputError."""
    check_weights(bench.model(chosen.compressed), wanted)
    spec, given = wanted.spec, lesson(bench, chosen, wanted)
    seconds: list[float] = []
    with bench.turns.turn():
        learning = way(bench, given)
    began = time.perf_counter()
    try:
        while len(seconds) < STEPS:
            with bench.turns.turn():
                step = next(learning.steps, None)
            if step is None:
                break
            seconds.append(step.seconds)
        ready = max(0.0, time.perf_counter() - began - sum(seconds))
    finally:
        learning.close()
    checks = 1 + spec.steps // (spec.evaluate_every or spec.steps)
    total = min(seconds) * spec.steps + ready * checks
    return (
        f"About **{total:.0f} s** ({min(seconds):.2f} s a step, {ready:.1f} s for each of {checks} validations), from "
        f"{len(seconds)} real steps.{taken(learning)} Memory of the whole server so far, these steps included: "
        f"{size(peak_bytes())}."
    )
