"""Faster versions of some layers while a card learns: fewer passes over memory, and fewer tensors kept for later.

In a large batch these layers take as long as the matrix products. transformers writes them as a handful of operations,
each of which reads and writes everything, and autograd keeps what stands between them.

    RMSNorm        torch's own fused kernel: autograd keeps the input in the model's dtype, not its copy in fp32
    gated MLP      silu(gate) · up in one kernel: autograd keeps gate and up, not silu(gate)

A layer is taken for one of them if it has their parts and gives the same numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.compression.kernels.usable import usable
from ctplab.models import Model
from ctplab.models.anatomy import embeddings

Forward = Callable[[Tensor], Tensor]
CLOSE = 2e-2
"""The largest difference of a layer's outputs, as a share of the largest output: a few roundings in bfloat16."""


@dataclass(frozen=True)
class Fused:
    """Modules and the functions that replace their ``forward``."""

    replaced: list[tuple[nn.Module, Forward]]

    @classmethod
    def of(cls, model: Model) -> "Fused | None":
        """Find the layers of ``model`` that can be replaced. None if it is not on a card with Triton, or has none."""
        found = find(model) if usable(embeddings(model).device) else []
        return cls(found) if found else None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the modules compute in the faster way."""
        before = [vars(module).get("forward") for module, _ in self.replaced]
        for module, forward in self.replaced:
            module.forward = forward
        try:
            yield
        finally:
            for (module, _), own in zip(self.replaced, before, strict=True):
                if own is None:
                    del module.forward
                else:
                    module.forward = own


def _norm(module: nn.Module) -> Forward | None:
    """A faster RMSNorm, if ``module`` looks like LLaMA's."""
    eps, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor):
        return None
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


def _mlp(module: nn.Module) -> Forward | None:
    """A faster MLP, if ``module`` looks like LLaMA's."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return None
    if type(module.act_fn).__name__ not in ("SiLU", "SiLUActivation"):  # others differ too little for small numbers
        return None
    from ctplab.compression.kernels.gated import gated

    gate, up, down = (module.get_submodule(name) for name in names[:3])

    def forward(x: Tensor) -> Tensor:
        return down(gated(gate(x), up(x)))

    return forward


@torch.no_grad()
def find(model: Model) -> list[tuple[nn.Module, Forward]]:
    """The modules of ``model`` that have a faster version, checked on random numbers once for each kind and size."""
    found: list[tuple[nn.Module, Forward]] = []
    same: dict[tuple, bool] = {}
    for module in model.modules():
        forward = _norm(module) or _mlp(module)
        if forward is None or "forward" in vars(module):  # something else has replaced it already
            continue
        weight = getattr(module, "weight", None)
        width = (
            len(weight) if isinstance(weight, Tensor) else getattr(module.get_submodule("gate_proj"), "in_features", 0)
        )
        key = (type(module), width)
        if key not in same:
            x = torch.randn(4, int(width), generator=torch.Generator().manual_seed(0))
            x = x.to(embeddings(model).device, embeddings(model).dtype)
            expected = module(x).float()
            same[key] = bool((forward(x).float() - expected).abs().max() <= CLOSE * expected.abs().max())
        if same[key]:
            found.append((module, forward))
    return found
