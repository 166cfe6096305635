"""Compress a model block by block: compute Hessians, solve, and pass on the compressed block's outputs.

This file knows modules. It knows no compression maths (see ``obs``) and no architectures (see ``capture``).

    calibration tokens
      | capture: run the embeddings, and record the arguments of every block
      v
    X_0 --> block 0 --> X_1 --> block 1 --> X_2 ...          X_i: hidden states of all windows, on their way
             |  1. find_groups: q, k, v share an input; so do gate and up; o and down have one each
             |  2. staged: for each group, H of its input while X_i passes through the block
             |  3. solve: the group's matrices, stacked, against H; put the result in place
             |  4. X_i passes through the compressed block and becomes X_(i+1)

So a block sees the errors of the blocks before it, and only one block and X need to be in memory. With
``true_sequential`` a group also sees the errors of the earlier groups in its block (see ``staging``).
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor, nn

from ctplab import parallel
from ctplab.compression import heap, obs, packing
from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.capture import Flow, Grouping, capture, find_groups
from ctplab.compression.hessian import Hessian
from ctplab.compression.products import fastest, products_in, ways
from ctplab.compression.rehearsal import flow_agrees, shares_weights
from ctplab.compression.reports import CompressionReport, Done, LayerReport, Parts, report_of
from ctplab.compression.sharing import deal, whole
from ctplab.compression.staging import Stages, staged
from ctplab.errors import InputError
from ctplab.machine import processor
from ctplab.models import Model
from ctplab.models.anatomy import (
    blocks,
    check_context,
    check_ids,
    eager_experts,
    linears,
    weight_matrix,
)
from ctplab.models.checks import kept_answer
from ctplab.progress import Progress, bar
from ctplab.specs import CompressionSpec

PRODUCTS = ("float32", "bfloat16")
"""What a CPU may multiply in."""


@torch.no_grad()
def compress(
    model: Model,
    calibration: Tensor,
    spec: CompressionSpec,
    *,
    batch: int = 16,
    products: str | None = None,
    progress: Progress = bar,
    inplace: bool = False,
) -> tuple[Model, CompressionReport]:
    """Compress every linear inside the blocks of ``model``; embeddings and the output head stay as they are.

    ``calibration``: (N, T) token windows. ``products``: what a CPU multiplies in, ``float32`` or ``bfloat16``; None:
    the faster one (see ``compression/products``). Returns the compressed model (a copy unless ``inplace``; its weights
    equal what the saved checkpoint will decode to) and the report. Raises InputError for NaN, for windows longer
    than the context and for group sizes that do not divide. For models larger than memory, use
    ``formats.streaming.compress_to``. Several processes share the windows, and all return the same result.
    """
    began = time.perf_counter()
    model = model if inplace else copy.deepcopy(model)
    done: Done = []
    for _, found in walk(model, calibration, spec, batch=batch, products=products, progress=progress):
        done += found
    return model, report_of(model, done, spec, calibration, time.perf_counter() - began)


def walk(
    model: Model,
    calibration: Tensor,
    spec: CompressionSpec,
    *,
    batch: int,
    products: str | None,
    progress: Progress,
    load: Callable[[int, nn.Module], object] = lambda index, block: None,
    enter: Callable[[int, nn.Module], bool] = lambda index, block: False,
    leave: Callable[[int, nn.Module], None] = lambda index, block: None,
) -> Iterator[tuple[int, Done]]:
    """Compress block after block in place. Yields (index, reports with packed weights) once a block is ready.

    ``load`` puts a block's own weights in place. So does ``enter``, which returns True if they are compressed already.
    ``leave`` is called once the block is no longer needed. Raises InputError if blocks share weights, if the captured
    flow is not the model's own (see ``rehearsal``), and for other ``products`` than :func:`compress` names.
    """
    check_context(model, 0, calibration.shape[1])
    check_ids(model, calibration)
    named = blocks(model)
    modules = [block for _, block in named]
    if not linears(modules[0]):
        raise InputError("this model runs from packed weights: it is compressed already")
    if shares_weights(modules):
        raise InputError(f"the blocks of {type(model).__name__} share weights: such models cannot be compressed here")
    load(0, modules[0])
    device = next(modules[0].parameters()).device
    with eager_experts(model), heap.kept():
        agrees = lambda: {"agrees": flow_agrees(model, modules, calibration.to(device), load, leave)}  # noqa: E731
        if not kept_answer(model, "flow", agrees)["agrees"]:
            raise InputError(
                f"{type(model).__name__} hands its blocks more than hidden states and positions, so calibration would "
                "not see what the model sees: such models cannot be compressed here"
            )
        finished = enter(0, modules[0])
        flow = capture(model, modules, deal(calibration.to(device), batch))
        arithmetic = _arithmetic(model, modules[0], flow, products)
        plans: dict[tuple, Grouping] = {}
        for index, (prefix, block) in enumerate(progress(named, total=len(named), label=f"compress {spec.tag}")):
            finished = finished if index == 0 else enter(index, block)
            more = index + 1 < len(named)
            if finished:
                if more:
                    with products_in(block, arithmetic):
                        flow.advance(index, block)
            else:
                shape = (type(block), *((name, p.shape) for name, p in block.named_parameters()))
                if shape not in plans:
                    found = find_groups(block, lambda index=index, block=block: flow.sample(index, block))
                    plans[shape] = parallel.of_main(found)  # another process may have seen other experts
                stages = staged(
                    flow, index, block, plans[shape], arithmetic, true_sequential=spec.true_sequential, advance=more
                )
                yield index, _compress_block(prefix, block, stages, spec, arithmetic)
            leave(index, block)


def _arithmetic(model: Model, block: nn.Module, flow: Flow, products: str | None) -> Arithmetic:
    """How to multiply: on a CPU in the format that ``products`` names, or in the faster one."""
    if products not in (None, *PRODUCTS):
        raise InputError(f"products must be one of {', '.join(PRODUCTS)}, not {products!r}")
    states = flow.hidden[0][:1]
    if states.device.type != "cpu":
        return Arithmetic(states.dtype)
    choice = ways(states.dtype, products)
    if len(choice) == 1:
        return choice[0]
    find = lambda: {"way": choice.index(fastest(choice, block, lambda: flow.sample(0, block), states))}  # noqa: E731
    where = f"the fastest of {choice} on {processor()}, {torch.get_num_threads()} threads"
    return choice[parallel.of_main(kept_answer(model, where, find))["way"]]


def _compress_block(
    prefix: str, block: nn.Module, stages: Stages, spec: CompressionSpec, arithmetic: Arithmetic
) -> Done:
    """Solve group after group. Each result is in place before the next group is asked for."""
    done: Done = []
    with closing(stages), products_in(block, arithmetic):  # also on errors: passes may wait in the middle of the block
        for group, hessian in stages:
            matrices = {f"{prefix}.{name}": weight_matrix(block, name) for name in group}
            done += _solve(matrices, whole(hessian), spec, arithmetic.name)
    return done


def _solve(
    matrices: dict[str, Tensor], hessian: Hessian, spec: CompressionSpec, products: str
) -> Iterator[tuple[LayerReport, Parts]]:
    """Solve the stacked matrices of one shared input and put the result in place."""
    for name, matrix in matrices.items():
        if not torch.isfinite(matrix).all():
            raise InputError(f"{name}: weights hold NaN or Inf; the model is damaged")
        if spec.group_size and matrix.shape[1] % spec.group_size:
            raise InputError(f"{name}: group size {spec.group_size} does not divide its {matrix.shape[1]} columns")
        if spec.pattern and matrix.shape[1] % spec.n_m[1]:
            raise InputError(f"{name}: pattern {spec.pattern} does not divide its {matrix.shape[1]} columns")
    H = hessian.matrix
    if not torch.isfinite(H).all():
        raise InputError(f"{next(iter(matrices))}: its inputs hold NaN or Inf; try dtype='float32'")
    silent = hessian.tokens == 0
    if silent:  # an expert that no calibration token reached
        H = torch.eye(H.shape[0], device=H.device)
    sections = tuple(len(matrix) for matrix in matrices.values())
    solved = obs.solve(torch.cat(list(matrices.values())), H, spec, sections)
    fallback = "no calibration tokens: round-to-nearest" if silent else solved.fallback
    for (name, matrix), own in zip(matrices.items(), solved.split(sections), strict=True):
        try:
            packed = packing.pack(own, spec.bits)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        decoded = packing.unpack(packed, spec.bits)
        parallel.copy_main(decoded)  # all solve the same problem, but different processors may round differently
        loss = obs.output_loss(matrix, decoded, H)
        matrix.copy_(decoded.to(matrix.dtype))
        size = packing.packed_bytes(packed)
        yield LayerReport(name, spec.method, loss, fallback, matrix.numel(), size, products), packed
