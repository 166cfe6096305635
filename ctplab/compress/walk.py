"""Block by block through a model: capture inputs, build Hessians, solve, pass compressed activations on.

Knows modules and hooks but no compression maths (that is ``obs``) and no architectures: blocks, their arguments
and the linears that share an input are found by running the model once.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ctplab.compress import obs, packing
from ctplab.errors import InputError
from ctplab.models import Model, as_matrix, blocks, check_context, linears, tensor_fingerprint
from ctplab.progress import Progress, bar
from ctplab.specs import CompressionSpec


@dataclass(frozen=True)
class LayerReport:
    """What happened to one linear."""

    name: str
    method: str
    loss: float
    """Squared output error a token, summed over outputs."""
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
    seconds: float
    parts: dict[str, dict[str, Tensor]] = field(repr=False)

    @property
    def bits_per_weight(self) -> float:
        """True bits over the compressed linears: codes, masks, scales and zeros."""
        return 8 * sum(layer.bytes for layer in self.layers) / sum(layer.weights for layer in self.layers)


class _Stop(Exception):
    """Ends a forward pass once the wanted inputs are captured."""


@dataclass
class _Call:
    """A block's arguments besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def _capture(model: Model, modules: list[nn.Module], batches: tuple[Tensor, ...]) -> tuple[list[Tensor], dict]:
    """Inputs of the first block for every batch; each block's other arguments for every batch size."""
    hidden: list[Tensor] = []
    calls: dict[int, list[_Call]] = {}
    current: list[_Call] = []

    def record(index: int, stop: bool) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            kwargs = dict(kwargs)
            states = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                hidden.append(states.detach())
            if stop:
                raise _Stop
            current.append(_Call(args[1:], kwargs))

        return hook

    for batch in batches:
        known = len(batch) in calls
        watched = modules[:1] if known else modules
        handles = [
            m.register_forward_pre_hook(record(i, known), with_kwargs=True, prepend=True) for i, m in enumerate(watched)
        ]
        try:
            model(input_ids=batch, use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not known:
            calls[len(batch)] = list(current)
            current.clear()
    return hidden, calls


def _groups(block: nn.Module, layers: dict[str, nn.Module], run: Callable[[], Any]) -> list[list[str]]:
    """Names of the linears that are called with the very same input tensor, in call order."""
    inputs: list[Tensor] = []  # kept alive, so that identities stay unique
    found: list[list[str]] = []

    def watch(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple) -> None:
            for index, known in enumerate(inputs):
                if known is args[0]:
                    found[index].append(name)
                    return
            inputs.append(args[0])
            found.append([name])

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    run()
    for handle in handles:
        handle.remove()
    called = {name for group in found for name in group}
    return [list(dict.fromkeys(group)) for group in found] + [[name] for name in layers if name not in called]


class _Hessian:
    """H = 2 X Xᵀ / N of one input, summed up batch by batch in fp32."""

    def __init__(self, layer: nn.Module) -> None:
        weight = as_matrix(layer)
        self.total = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float32, device=weight.device)
        self.tokens = 0

    def __call__(self, _: nn.Module, args: tuple) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        self.total.addmm_(x.T, x)
        self.tokens += len(x)

    @property
    def matrix(self) -> Tensor:
        return 2 * self.total / max(1, self.tokens)


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
    than the context and for group sizes that do not divide.
    """
    began = time.perf_counter()
    check_context(model, 0, calibration.shape[1])
    model = model if inplace else copy.deepcopy(model)
    device = next(model.parameters()).device
    named = blocks(model)
    batches = torch.split(calibration.to(device), batch)
    hidden, calls = _capture(model, [block for _, block in named], batches)
    done: list[LayerReport] = []
    parts: dict[str, dict[str, Tensor]] = {}

    for index, (prefix, block) in enumerate(progress(named, total=len(named), label=f"compress {spec.tag}")):
        layers = linears(block)

        def forward(
            into: list[Tensor] | None = None, first: bool = False, block: nn.Module = block, index: int = index
        ) -> None:
            for i, states in enumerate(hidden[:1] if first else hidden):
                out = calls[len(states)][index].run(block, states)
                if into is not None:
                    into[i] = out

        groups = _groups(block, layers, lambda forward=forward: forward(first=True))
        stages = [[group] for group in groups] if spec.true_sequential else [groups]
        for stage in stages:
            hessians = [_Hessian(layers[group[0]]) for group in stage]
            handles = [
                layers[group[0]].register_forward_pre_hook(hessian)
                for group, hessian in zip(stage, hessians, strict=True)
            ]
            forward()
            for handle in handles:
                handle.remove()
            for group, hessian in zip(stage, hessians, strict=True):
                named_layers = {f"{prefix}.{name}": layers[name] for name in group}
                for name, report, packed in _solve(named_layers, hessian, spec):
                    done.append(report)
                    parts[name] = packed
        forward(into=hidden)
    names = {f"{name}.weight" for name in parts}
    untouched = tuple(n for n, p in model.named_parameters() if p.ndim > 1 and n not in names)
    seconds = time.perf_counter() - began
    return model, CompressionReport(spec, tuple(done), untouched, tensor_fingerprint(calibration), seconds, parts)


def _solve(layers: dict[str, nn.Module], hessian: _Hessian, spec: CompressionSpec):
    """Solve the stacked layers of one shared input, put the result in place, yield (name, report, parts)."""
    first = next(iter(layers))
    matrices = [as_matrix(layer) for layer in layers.values()]
    for name, matrix in zip(layers, matrices, strict=True):
        if not torch.isfinite(matrix).all():
            raise InputError(f"{name}: weights hold NaN or Inf; the model is damaged")
        if spec.group_size and matrix.shape[1] % spec.group_size:
            raise InputError(f"{name}: group size {spec.group_size} does not divide its {matrix.shape[1]} columns")
        if spec.pattern and matrix.shape[1] % spec.n_m[1]:
            raise InputError(f"{name}: pattern {spec.pattern} does not divide its {matrix.shape[1]} columns")
    H = hessian.matrix
    if not torch.isfinite(H).all():
        raise InputError(f"{first}: its inputs hold NaN or Inf; try --dtype float32")
    silent = hessian.tokens == 0
    if silent:  # a mixture-of-experts layer that no calibration token reached
        H = torch.eye(H.shape[0], device=H.device)
    sections = tuple(matrix.shape[0] for matrix in matrices)
    solved = obs.solve(torch.cat(matrices), H, spec, sections)
    fallback = "no calibration tokens: round-to-nearest" if silent else solved.fallback
    start = 0
    for (name, layer), matrix in zip(layers.items(), matrices, strict=True):
        rows = slice(start, start + matrix.shape[0])
        start += matrix.shape[0]
        own = obs.Solution(
            solved.W_hat[rows],
            None if solved.codes is None else solved.codes[rows],
            None if solved.scale is None else solved.scale[rows],
            None if solved.zero is None else solved.zero[rows],
            solved.group,
            None if solved.mask is None else solved.mask[rows],
            0.0,
        )
        try:
            packed = packing.pack(own, spec.bits)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        decoded = packing.unpack(packed, spec.bits)
        difference = matrix.float() - decoded
        loss = float(((difference @ H) * difference).sum()) / 2
        as_matrix(layer).copy_(decoded.to(matrix.dtype))
        size = packing.packed_bytes(packed)
        yield name, LayerReport(name, spec.method, loss, fallback, matrix.numel(), size), packed
