"""Estimate the memory for tuning a compressed model: that of a prompt's step, and what each kind of change adds.

``learning/tuned`` learns through dense weights of which each is a function of free parameters u. So there are more
parameters, and autograd keeps more: the changed matrices, and the inputs of their layers.

    for each u        u, its gradient and AdamW's two moments: 16 bytes; on a CPU also the best u so far, and twice (at
                      the start and at the best) what is written of it: codes as int16, all else in fp32
    codes             a u for each weight; codes in a byte, scales and zeros in fp32; kept values that have no codes
                      take a mask, and a step the mask's copy in fp32
    scales            a u for each group of a row; which column is of which group
    low-rank          a u for each number of B and A; a mask, or for quantised weights what codes take, the start of
                      each u in half precision, and in a step each u in fp32

A mask beside codes (a model that is both pruned and quantised) is not counted: a byte a weight.
"""

from collections.abc import Sequence
from dataclasses import replace

from ctplab.errors import InputError
from ctplab.formats.tuned import KINDS
from ctplab.learning.memory import SIZES, Memory, Settings, Shape, learning


def tuning(shape: Shape, settings: Settings, what: Sequence[str], rank: int = 8) -> Memory:
    """The memory of one step at its peak that learns the kinds ``what``, and a prompt if ``settings.tokens`` is not 0.

    ``settings.bits`` and ``settings.group_size`` are those of the compressed model; its weights are dense in memory.
    Raises InputError for other kinds than ``formats.tuned.KINDS``.
    """
    if not what or not set(what) <= set(KINDS):
        raise InputError(f"what to tune: one or more of {', '.join(KINDS)}, not {','.join(what) or 'nothing'}")
    base, s = learning(shape, replace(settings, bits=None)), SIZES[settings.dtype]
    values, block = _values(shape, settings, rank), _block(shape, settings, what, s)
    learned = sum(values[kind] for kind in what)
    weights, groups = shape.layers * shape.block_weights, values["scales"]
    rounded = _rounded(settings, what)
    written = sum(4 * values[kind] for kind in what if kind not in rounded) + (2 * weights if rounded else 0)
    changes = 4 * learned + (0 if settings.card else 4 * learned + 2 * written)
    if {"codes", "low-rank"} & {*what}:  # codes, or a mask
        changes += weights + (2 * 4 * groups if rounded else 0) + (2 * weights if "low-rank" in rounded else 0)
    if "scales" in what:
        changes += shape.layers * sum(columns * n * s for _, columns, n in _matrices(shape, settings) if n > 1)
    return replace(
        base,
        changes=changes,
        optimizer=base.optimizer + 3 * 4 * learned,
        kept=base.kept + (0 if settings.recompute else shape.layers * block),
        block=base.block + (block if settings.recompute else 0) + _gradient(shape, what),
    )


def _rounded(settings: Settings, what: Sequence[str]) -> set[str]:
    """The kinds that move codes."""
    return {"codes", "low-rank"} & {*what} if settings.bits else set()


def _matrices(shape: Shape, settings: Settings) -> list[tuple[int, int, int]]:
    """Rows, columns and groups of a row of each matrix of a block."""
    d, kv, f = shape.width, shape.kv_width, shape.inner
    sizes = [(d, d), (kv, d), (kv, d), (d, d), *[(f, d)] * (2 if shape.gated else 1), (d, f)]
    group = settings.group_size if settings.bits else None
    return [(rows, columns, -(-columns // (group or columns))) for rows, columns in sizes]


def _values(shape: Shape, settings: Settings, rank: int) -> dict[str, int]:
    """The number of u of each kind."""
    matrices = _matrices(shape, settings)
    return {
        "scales": shape.layers * sum(rows * groups for rows, _, groups in matrices),
        "norms": (2 * shape.layers + 1) * shape.width,
        "low-rank": shape.layers * rank * sum(rows + columns for rows, columns, _ in matrices),
        "codes": shape.layers * shape.block_weights,
    }


def _block(shape: Shape, settings: Settings, what: Sequence[str], s: int) -> int:
    """Bytes that autograd saves in one block beside what a prompt's step saves there."""
    rows, d, weights, found = settings.tokens + settings.batch * settings.seq_len, shape.width, shape.block_weights, 0
    if "norms" in what and not settings.card:  # what their weights are multiplied with
        found += rows * 2 * d * s
    if {*what} - {"norms"}:
        found += rows * (2 * d + shape.inner) * s + weights * s
    rounded = _rounded(settings, what)
    if ("codes" in what and not rounded) or "low-rank" in rounded:
        found += 4 * weights
    if ("codes" in what or rounded) and "scales" in what:  # each factor of a product; scales of whole rows are few
        of_groups = any(groups > 1 for _, _, groups in _matrices(shape, settings))
        found += weights * s * (2 if of_groups else 1)
    return found


def _gradient(shape: Shape, what: Sequence[str]) -> int:
    """Bytes on the way from the gradient of the largest matrix to that of its u: fp32, in place of the matrix."""
    return 4 * shape.width * shape.inner if {*what} - {"norms"} else 0
