"""How cost grows, measured on this machine, and the projected cost of the paper's whole programme.

    python benchmarks/scale.py             all sections
    python benchmarks/scale.py cells       CPU seconds (one thread) against parameters, tokens, k and cells; exponents
    python benchmarks/scale.py memory      the memory model against live bytes and against the process's own peak
    python benchmarks/scale.py programme   the projection: 1, 8 and 64 GPUs (measures nothing)

Seconds depend on the machine: read the exponents and ratios. The projection is not a measurement: it divides counted
FLOPs by a rate (``--rate``) that nobody has measured with this code.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ctplab as ctp
from ctplab.learning.memory import SHAPES, Settings, Shape, learning, shape_of
from ctplab.learning.recompute import recompute
from ctplab.progress import silent
from ctplab.prompts.prefix import random_rows
from ctplab.text.corpora import Split

VOCABULARY, LAYERS, REPEATS = 4096, 4, 3
STEPS, BATCH, LENGTH, K = 30_000, 4, 1024, 100
"""The paper's recipe (section 5.1)."""


@dataclass(frozen=True)
class Point:
    """One measured cell; the others differ from it in one number."""

    width: int = 256
    batch: int = 4
    length: int = 128
    k: int = 50


def make(width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": LAYERS}
    config = LlamaConfig(vocab_size=VOCABULARY, **shape, num_attention_heads=width // 32, pad_token_id=0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def splits(point: Point, windows: int) -> tuple[Split, Split]:
    stream = torch.randint(VOCABULARY, (windows * point.length,), generator=torch.Generator().manual_seed(0))
    return Split("x", "train", stream, point.length), Split("x", "validation", stream[: point.length], point.length)


def learn_seconds(point: Point) -> float:
    """Median seconds of one step. The first step (with its validation) is not timed."""
    steps = REPEATS + 2
    spec = ctp.PromptSpec(tokens=point.k, steps=steps, batch=point.batch, validation_windows=1, evaluate_every=steps)
    taken = ctp.learn_steps(make(point.width), *splits(point, point.batch), spec)
    next(taken)
    return timed(lambda: next(taken))


def score_seconds(point: Point) -> float:
    """Median seconds of one batch behind a prompt."""
    model = make(point.width)
    arm = ctp.Arm("x", model, random_rows(model, point.k))
    return timed(lambda: ctp.window_scores(arm, splits(point, point.batch)[0].windows, batch=point.batch))


def compress_seconds(point: Point) -> float:
    """Seconds of a whole model on 8 batches, measured once."""
    spec = ctp.CompressionSpec(bits=4, group_size=32)
    windows, model = splits(point, 8 * point.batch)[0].windows, make(point.width)
    began = time.process_time()
    ctp.compress(model, windows, spec, batch=point.batch, progress=silent, inplace=True)
    return time.process_time() - began


def timed(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def product_rate(width: int, rows: int) -> float:
    """FLOP/s of a product of the shape in the MLP."""
    a, b = torch.randn(rows, width), torch.randn(width, 3 * width)
    return 2 * rows * width * 3 * width / timed(lambda: a @ b)


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y against log x, by least squares."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = statistics.fmean(a), statistics.fmean(b)
    return sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)) / sum((p - mean_a) ** 2 for p in a)


def report(what: str, against: str, x: list[float], seconds: list[float]) -> None:
    points = ", ".join(f"{v:.3g}: {s:.3f} s" for v, s in zip(x, seconds, strict=True))
    print(f"{what:9} against {against:10} {points}; grows as {against}^{exponent(x, seconds):.2f}", flush=True)


def cells() -> None:
    torch.set_num_threads(1)  # with CPU time, so that other processes do not count
    base, widths = Point(), [128, 256, 384]
    weights = [float(shape_of(make(width).config).parameters - VOCABULARY * width) for width in widths]
    for name, cost in (("learn", learn_seconds), ("score", score_seconds), ("compress", compress_seconds)):
        report(name, "parameters", weights, [cost(replace(base, width=width)) for width in widths])
        batches = [2, 4, 8]
        tokens = [float(batch * base.length) for batch in batches]
        report(name, "tokens", tokens, [cost(replace(base, batch=batch)) for batch in batches])
    rows = [25, 50, 100, 200]
    report("learn", "k", [float(k) for k in rows], [learn_seconds(replace(base, k=k)) for k in rows])
    report("score", "k", [float(k) for k in rows], [score_seconds(replace(base, k=k)) for k in rows])
    largest = Point(width=widths[-1], batch=8)
    shape, tokens_there = shape_of(make(largest.width).config), largest.batch * largest.length
    work = 2 * 2 * (shape.parameters - VOCABULARY * largest.width) * tokens_there  # forward and inputs' gradient
    share = work / learn_seconds(largest) / product_rate(largest.width, tokens_there)
    print(f"learn     reaches {share:.0%} of the rate of its plain matrix products, at width {largest.width}")
    seconds = [sum(learn_seconds(base) for _ in range(n)) for n in (1, 2, 4)]
    report("learn", "cells", [1.0, 2.0, 4.0], seconds)


def memory() -> None:
    """Run each size in its own process, so that its peak is its own."""
    for arguments in (("384", "8", "keep"), ("512", "8", "keep"), ("512", "16", "recompute")):
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors leave the process
        done = subprocess.run(
            [sys.executable, __file__, "peak", *arguments], capture_output=True, text=True, env=environment
        )
        print(done.stdout.strip() or done.stderr.strip()[-500:], flush=True)


def resident(what: str) -> float:
    """MB that this process occupies now (VmRSS) or has occupied at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6


def peak(width: int, batch: int, how: str) -> None:
    """Print the estimated, live and resident bytes of one learning step."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from live import peak_bytes

    point, spec = Point(width=width, batch=batch), ctp.PromptSpec(tokens=50, steps=1, batch=batch, validation_windows=1)
    model = recompute(make(width)) if how == "recompute" else make(width)
    settings = Settings(50, point.length, batch, "float32", recompute=how == "recompute")
    needed = learning(shape_of(model.config), settings)

    def run(size: int) -> None:
        list(ctp.learn_steps(model, *splits(replace(point, batch=size), size), replace(spec, batch=size)))

    run(1)  # libraries load, threads get their buffers
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    run(batch)
    grown = resident("VmHWM") - before
    counted, paper = peak_bytes(lambda: run(batch)) / 1e6, (needed.total - needed.weights) / 1e6
    print(
        f"memory  width {width}, batch {batch} x {point.length}, {how}: on paper {paper:.0f} MB beside the weights, "
        f"live tensors {counted:.0f} MB ({paper / counted:.2f}), resident +{grown:.0f} MB"
    )


@dataclass(frozen=True)
class Work:
    """One part of the programme: a model, the number of prompts to learn and of levels to compress it to."""

    name: str
    shape: Shape
    prompts: int
    levels: int


OPT = {
    "OPT-1.3B": Shape(24, 2048, 8192, 50_272, 2048, False, True),
    "OPT-2.7B": Shape(32, 2560, 10_240, 50_272, 2560, False, True),
    "OPT-6.7B": Shape(32, 4096, 16_384, 50_272, 4096, False, True),
}
BLOOM = Shape(30, 4096, 16_384, 250_880, 4096, False, True)
PROGRAMME = [
    *(Work(f"{name}, six levels (figure 3)", shape, 6, 6) for name, shape in OPT.items()),
    Work("LLaMA-7B, six levels (figure 3)", SHAPES["7b"], 6, 6),
    Work("LLaMA-7B, direct prompts on two corpora (table 2)", SHAPES["7b"], 8, 0),
    Work("LLaMA-7B, 50% + 4 bits (table 4)", SHAPES["7b"], 1, 1),
    Work("LLaMA-7B, three more k (table 9)", SHAPES["7b"], 3, 0),
    Work("LLaMA-2-13B, 3 bits, prompt and LoRA (table 1)", SHAPES["13b"], 2, 1),
    Work("BLOOM-7B, 3 bits, prompt and LoRA (table 1)", BLOOM, 2, 1),
]


def learn_flops(shape: Shape) -> float:
    """FLOPs of one prompt: forward, recomputed blocks and the gradient of inputs, 2 per weight and token each."""
    tokens = STEPS * (BATCH * LENGTH + K)
    weights = shape.layers * shape.block_weights
    attention = 4 * shape.layers * shape.width * (LENGTH / 2 + K)  # per token, forward
    head = shape.vocabulary * shape.width
    return 1.1 * tokens * (3 * (2 * weights + attention) + 2 * 2 * head)  # a tenth of the work is validation


def compress_flops(shape: Shape) -> float:
    """FLOPs of one level on 128 windows: two forward passes, the Hessians, and the solve (cubic)."""
    tokens, columns = 128 * LENGTH, [shape.width] * 3 + [shape.inner]
    hessians = sum(tokens * c * c for c in columns)  # symmetric: half
    solve = sum(c**3 for c in columns) + shape.block_weights * max(columns)
    return 2 * tokens * 2 * shape.layers * shape.block_weights + shape.layers * (hessians + solve)


def makespan(costs: list[float], workers: int) -> float:
    """Seconds until all jobs are done, if the longest jobs go first and each to the first free worker."""
    busy = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        busy[busy.index(min(busy))] += cost
    return max(busy)


def programme(rate: float, shared: float) -> None:
    costs: list[float] = []
    for work in PROGRAMME:
        learn, compress = learn_flops(work.shape), compress_flops(work.shape)
        costs += [learn / rate] * work.prompts + [compress / rate * 4] * work.levels
        total = work.prompts * learn + work.levels * compress
        print(
            f"programme  {work.name}: {total:.2g} FLOP, {work.prompts * learn / rate / 3600:.0f} GPU hours of learning"
        )
    print(f"PROJECTION, not measured: {len(costs)} cells, {sum(costs) / 3600:.0f} GPU hours in all")
    for gpus in (1, 8, 64):
        ways = {1: 1.0} | {n: n * shared for n in (2, 4) if gpus >= n}  # a batch of 4 windows: at most 4 processes
        best = min((makespan([c / speed for c in costs], gpus // n), n) for n, speed in ways.items())
        print(f"PROJECTION, {gpus:2} GPUs: {best[0] / 86_400:.2f} days, {best[1]} processes a prompt")
    print(
        f"Assumes: {rate / 1e12:.0f} TFLOP/s sustained in every GPU (of an A100's 312 in bf16), compression at a "
        f"quarter of that, {shared:.0%} of it where processes share a prompt; cost in proportion to arithmetic; 80 GB "
        "a GPU so that no model is split; blocks recomputed; no queueing or failures; scoring within the tenth for "
        "validation."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=("cells", "memory", "programme", "peak"))
    parser.add_argument("size", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=120, help="TFLOP/s a GPU sustains")
    parser.add_argument("--shared", type=float, default=0.9, help="of the rate, where processes share a prompt")
    options = parser.parse_args()
    if options.section == "peak":
        peak(int(options.size[0]), int(options.size[1]), options.size[2])
    if options.section in (None, "cells"):
        cells()
    if options.section in (None, "memory"):
        memory()
    if options.section in (None, "programme"):
        programme(options.rate * 1e12, options.shared)


if __name__ == "__main__":
    main()
