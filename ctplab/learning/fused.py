"""Faster versions of some layers while a model learns: on a card, fewer passes over memory and fewer tensors kept.

In a large batch these layers take as long as the matrix products. transformers writes them as a handful of operations,
each of which reads and writes everything, and autograd keeps what stands between them.

    RMSNorm        torch's own fused kernel: autograd keeps the input in the model's dtype, not its copy in fp32
    gated MLP      silu(gate) · up in one kernel: autograd keeps gate and up, not silu(gate)
    attention      rotary positions, and the places of prefix and texts in a long row, in one kernel each way

A layer is taken for one of them if it has their parts and gives the same numbers. On a CPU it is the linear layers
that have a faster version (see ``learning/linears``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctplab.compression.kernels.usable import usable
from ctplab.learning import linears
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.prompts.attention import Layout, prefix_attention, takes_switch

Forward = Callable[..., Any]
CLOSE = 2e-2
"""The largest difference of a layer's outputs, as a share of the largest output: a few roundings in bfloat16."""


@dataclass(frozen=True)
class Fused:
    """Modules and the functions that replace their ``forward``."""

    replaced: list[tuple[nn.Module, Forward]]

    @classmethod
    def of(cls, model: Model) -> "Fused | None":
        """Find the layers of ``model`` that can be replaced, on a card with Triton or on a CPU. None if it has none."""
        found = find(model) if usable(embeddings(model).device) else linears.find(model)
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
    norm: Any = module
    return lambda x: F.rms_norm(x, norm.weight.shape, norm.weight, eps)  # asked for each time: it may be learned


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


def _attention(module: nn.Module) -> Forward | None:
    """A faster attention, if ``module`` looks like LLaMA's."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return None
    d, own = getattr(module, "head_dim", None), module.forward
    if not isinstance(d, int) or d % 2 or not getattr(module, "is_causal", False):
        return None
    from ctplab.compression.kernels.placed import placed, taken

    q, k, v, o = (module.get_submodule(name) for name in names)
    scale = getattr(module, "scaling", None)

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        angles, usual = position_embeddings, attention_mask is not None or past_key_values is not None
        if angles is None or usual or angles[0].shape[-1] != d:  # a mask, a cache, or positions of some columns only
            return own(hidden_states, angles, attention_mask, past_key_values, **settings)
        layout = settings.get("layout") or Layout(0, *hidden_states.shape[:2])
        turn = angles[0].reshape(-1, d), angles[1].reshape(-1, d)
        query, key, value = (each(hidden_states).view(layout.rows, -1, d) for each in (q, k, v))
        out = F.scaled_dot_product_attention(
            placed(query, layout, turn),
            placed(key, layout, turn),
            placed(value, layout),
            is_causal=True,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return o(taken(out, layout).view(*hidden_states.shape[:-1], -1)), None

    return forward


@torch.no_grad()
def find(model: Model) -> list[tuple[nn.Module, Forward]]:
    """The modules of ``model`` that have a faster version, each checked on random numbers."""
    with prefix_attention(model):
        return [(module, forward) for module in model.modules() for forward in _faster(model, module)]


def _faster(model: Model, module: nn.Module) -> Iterator[Forward]:
    """Yield the faster version of ``module``, if there is one that gives the same numbers."""
    if "forward" in vars(module):  # something else has replaced it already
        return
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(embeddings(model).device, embeddings(model).dtype)

    inputs: list[tuple[tuple, dict[str, Any]]] = []
    if (forward := _norm(module) or _mlp(module)) is not None:
        weight = getattr(module, "weight", None)
        inputs = [((random(4, len(weight) if isinstance(weight, Tensor) else _width(module, "gate_proj")),), {})]
    elif takes_switch(model) and (forward := _attention(module)) is not None:
        width, d = _width(module, "q_proj"), int(getattr(module, "head_dim", 0))
        for batch, length, more in ((2, 5, {}), (1, 8, {"layout": Layout(2, 2, 3)})):
            angles = random(1, length, d // 2).repeat(1, 1, 2)
            inputs.append(((random(batch, length, width), (angles.cos(), angles.sin()), None), more))
    if forward is not None and all(_same(module, forward, args, more) for args, more in inputs):
        yield forward


def _width(module: nn.Module, name: str) -> int:
    return int(getattr(module.get_submodule(name), "in_features", 0))


def _same(module: nn.Module, forward: Forward, args: tuple, more: dict[str, Any]) -> bool:
    """Whether both give the same numbers. False if the module's own forward takes no such arguments."""
    try:
        expected, found = module(*args, **more), forward(*args, **more)
    except (TypeError, ValueError, AttributeError):
        return False
    expected, found = (out[0] if isinstance(out, tuple) else out for out in (expected, found))
    return bool((found.float() - expected.float()).abs().max() <= CLOSE * expected.float().abs().max())
