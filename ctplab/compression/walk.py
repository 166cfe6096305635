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
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctplab import parallel
from ctplab.compression import heap, obs, packing
from ctplab.compression.capture import Grouping, capture, find_groups
from ctplab.compression.hessian import Hessian
from ctplab.compression.rehearsal import flow_agrees, shares_weights
from ctplab.compression.sharing import deal, whole
from ctplab.compression.staging import Stages, staged
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import (
    blocks,
    check_context,
    check_ids,
    eager_experts,
    linears,
    parameter_name,
    weight_matrix,
)
from ctplab.models.checks import kept_answer
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.progress import Progress, bar
from ctplab.specs import CompressionSpec

Parts = dict[str, Tensor]
NOTICED = 0.02
"""Share of the blocks' weights that may stay uncompressed without a word: routers, convolutions."""


@dataclass(frozen=True)
class LayerReport:
    """What happened to one weight matrix."""

    name: str
    method: str
    loss: float
    """Squared output error per token, summed over outputs."""
    fallback: str | None
    weights: int
    bytes: int


@dataclass(frozen=True)
class CompressionReport:
    """What happened to a model, and the packed weights to save."""

    spec: CompressionSpec
    layers: tuple[LayerReport, ...]
    untouched: tuple[str, ...]
    """Parameters with at least two dimensions that were not compressed."""
    calibration: str
    """Fingerprint of the calibration tokens."""
    tokens: int
    """Calibration tokens."""
    seconds: float
    parts: dict[str, Parts] = field(repr=False)
    left: dict[str, int] = field(default_factory=dict)
    """Matrices inside the blocks that were not compressed -> their numbers of weights."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over the compressed matrices: codes, masks, scales and zeros."""
        return 8 * sum(layer.bytes for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def block_bits_per_weight(self) -> float:
        """The same over all matrices inside the blocks: those that were left as they are count 16 bits a weight."""
        left, done = sum(self.left.values()), sum(layer.weights for layer in self.layers)
        return (8 * sum(layer.bytes for layer in self.layers) + 16 * left) / (done + left)

    @property
    def warnings(self) -> list[str]:
        """What the user should know: fallbacks, weights left as they are, and Hessians of less than full rank."""
        found = [f"{layer.name}: {layer.fallback}" for layer in self.layers if layer.fallback]
        left, done = sum(self.left.values()), sum(layer.weights for layer in self.layers)
        if left > NOTICED * (done + left):
            names = sorted(self.left, key=lambda name: -self.left[name])
            found.append(
                f"{left / (done + left):.0%} of the blocks' weights were not compressed ({', '.join(names[:2])}, ...): "
                f"they are multiplied in a way that is not watched; all in all {self.block_bits_per_weight:.2f} bits a "
                "weight of the blocks"
            )
        widest = max((int(p["shape"][1]) for p in self.parts.values()), default=0)
        if self.tokens < widest:
            found.append(
                f"{self.tokens} calibration tokens are fewer than the {widest} columns of the widest matrix: its "
                "Hessian is singular but for the dampening; give more windows (samples=) or longer ones (seq_len=)"
            )
        return found


Done = list[tuple[LayerReport, Parts]]


@torch.no_grad()
def compress(
    model: Model,
    calibration: Tensor,
    spec: CompressionSpec,
    *,
    batch: int = 16,
    progress: Progress = bar,
    inplace: bool = False,
) -> tuple[Model, CompressionReport]:
    """Compress every linear inside the blocks of ``model``; embeddings and the output head stay as they are.

    ``calibration``: (N, T) token windows. Returns the compressed model (a copy unless ``inplace``; its weights
    equal what the saved checkpoint will decode to) and the report. Raises InputError for NaN, for windows longer
    than the context and for group sizes that do not divide. For models larger than memory, use
    ``formats.streaming.compress_to``. Several processes share the windows, and all return the same result.
    """
    began = time.perf_counter()
    model = model if inplace else copy.deepcopy(model)
    done: Done = []
    for _, found in walk(model, calibration, spec, batch=batch, progress=progress):
        done += found
    return model, report_of(model, done, spec, calibration, time.perf_counter() - began)


def report_of(model: Model, done: Done, spec: CompressionSpec, calibration: Tensor, seconds: float):
    """The report on everything that :func:`walk` yielded."""
    layers = tuple(report for report, _ in done)
    names = {parameter_name(layer.name, model) for layer in layers}
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1 and n not in names}
    prefixes = tuple(f"{name}." for name, _ in blocks(model))
    left = {n: count for n, count in matrices.items() if n.startswith(prefixes)}
    parts = {report.name: parts for report, parts in done}
    return CompressionReport(
        spec, layers, tuple(matrices), tensor_fingerprint(calibration), calibration.numel(), seconds, parts, left
    )


def walk(
    model: Model,
    calibration: Tensor,
    spec: CompressionSpec,
    *,
    batch: int,
    progress: Progress,
    load: Callable[[int, nn.Module], object] = lambda index, block: None,
    enter: Callable[[int, nn.Module], bool] = lambda index, block: False,
    leave: Callable[[int, nn.Module], None] = lambda index, block: None,
) -> Iterator[tuple[int, Done]]:
    """Compress block after block in place. Yields (index, reports with packed weights) once a block is ready.

    ``load`` puts a block's own weights in place. So does ``enter``, which returns True if they are compressed already.
    ``leave`` is called once the block is no longer needed. Raises InputError if blocks share weights, and if the
    captured flow is not the model's own (see ``rehearsal``).
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
        plans: dict[tuple, Grouping] = {}
        for index, (prefix, block) in enumerate(progress(named, total=len(named), label=f"compress {spec.tag}")):
            finished = finished if index == 0 else enter(index, block)
            more = index + 1 < len(named)
            if finished:
                if more:
                    flow.advance(index, block)
            else:
                shape = (type(block), *((name, p.shape) for name, p in block.named_parameters()))
                if shape not in plans:
                    found = find_groups(block, lambda index=index, block=block: flow.sample(index, block))
                    plans[shape] = parallel.of_main(found)  # another process may have seen other experts
                stages = staged(flow, index, block, plans[shape], true_sequential=spec.true_sequential, advance=more)
                yield index, _compress_block(prefix, block, stages, spec)
            leave(index, block)


def _compress_block(prefix: str, block: nn.Module, stages: Stages, spec: CompressionSpec) -> Done:
    """Solve group after group. Each result is in place before the next group is asked for."""
    done: Done = []
    with closing(stages):  # also on errors: passes may wait in the middle of the block
        for group, hessian in stages:
            matrices = {f"{prefix}.{name}": weight_matrix(block, name) for name in group}
            done += _solve(matrices, whole(hessian), spec)
    return done


def _solve(matrices: dict[str, Tensor], hessian: Hessian, spec: CompressionSpec) -> Iterator[tuple[LayerReport, Parts]]:
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
        yield LayerReport(name, spec.method, loss, fallback, matrix.numel(), packing.packed_bytes(packed)), packed
