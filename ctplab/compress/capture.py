"""What flows through a model's blocks: their inputs, their other arguments, and which weights share an input.

Everything is found by running the model; no architecture is named. A *unit* is one weight matrix (out, in) that can
be compressed: a linear layer, or one expert's slice of a stacked (experts, out, in) parameter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ctplab.models import Model, linears

CHUNK = 2048  # tokens of one bfloat16 product
PANEL = 256  # columns of H that one product fills: only the upper triangle is computed


class Stop(Exception):
    """Ends a forward pass once all that was wanted from it is known."""


@dataclass(frozen=True)
class Call:
    """A block's arguments besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's new hidden states, whether it returns them bare or in a tuple."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


@dataclass
class Flow:
    """Hidden states of every batch on their way through the blocks."""

    hidden: list[Tensor]
    calls: dict[int, list[Call]]
    """By batch size: the other arguments of every block."""

    def outputs(self, index: int, block: nn.Module) -> Iterator[Tensor]:
        """Run block ``index`` on every batch; a ``Stop`` inside ends that batch."""
        for states in self.hidden:
            with suppress(Stop):
                yield self.calls[len(states)][index].run(block, states)

    def sample(self, index: int, block: nn.Module) -> Tensor:
        """Run block ``index`` on one window."""
        return self.calls[1][index].run(block, self.hidden[0][:1])

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace the hidden states by the block's outputs, batch by batch."""
        for i, out in enumerate(self.outputs(index, block)):
            self.hidden[i] = out


def capture(model: Model, modules: list[nn.Module], batches: tuple[Tensor, ...]) -> Flow:
    """Run ``model`` up to its blocks and note what they are called with.

    All blocks are bypassed, but for the first one on a single window (so only it needs its weights): what it returns,
    the others return the same kind of.
    """
    flow = Flow([], {})
    returned: list[Any] = []

    def stub(index: int, forward: Callable, seen: list[Call], known: bool) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            states = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                flow.hidden.append(states.detach())
            if known:
                raise Stop
            seen.append(Call(args[1:], kwargs))
            if not returned:
                returned.append(forward(states, *args[1:], **kwargs))
            return (states, *returned[0][1:]) if isinstance(returned[0], tuple) else states

        return call

    for batch in (batches[0][:1], *batches):
        seen: list[Call] = []
        known = len(batch) in flow.calls
        for index, module in enumerate(modules):
            module.forward = stub(index, module.forward, seen, known)
        try:
            model(input_ids=batch, use_cache=False)
        except Stop:
            pass
        finally:
            for module in modules:
                del module.forward
        if not known:
            flow.calls[len(batch)] = seen
    del flow.hidden[0]  # the single window's
    return flow


class Watch(TorchFunctionMode):
    """Calls ``seen(unit name, input)`` for every unit of ``block`` that is used while the watch is on."""

    def __init__(self, block: nn.Module, seen: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.seen = seen
        self.layers = linears(block)
        self.stacked = {id(p): name for name, p in block.named_parameters() if p.ndim == 3}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.linear and len(args) > 1 and isinstance(args[1], Tensor):
            stack = args[1]._base
            name = self.stacked.get(id(stack))
            if name is not None and stack is not None:
                expert = (args[1].storage_offset() - stack.storage_offset()) // args[1].numel()
                self.seen(f"{name}.{expert}", args[0])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch linears by hooks, stacked experts by their products."""

        def hook(name: str) -> Callable:
            return lambda _, args: self.seen(name, args[0])

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            if self.stacked:
                with self:
                    yield
            else:
                yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class Plan:
    """The units of a block: names that share an input, in the order of their calls."""

    groups: tuple[tuple[str, ...], ...]
    stoppable: bool
    """Every unit is used once a pass, so that a pass may end at the last one's input."""


def plan(block: nn.Module, run: Callable[[], Any]) -> Plan:
    """Find the groups by one pass. Experts that saw nothing follow at the end, each by itself."""
    inputs: list[Tensor] = []  # kept alive, so that identities stay unique
    found: list[list[str]] = []
    calls = 0

    def seen(name: str, x: Tensor) -> None:
        nonlocal calls
        calls += 1
        for index, known in enumerate(inputs):
            if known is x:
                found[index].append(name)
                return
        inputs.append(x)
        found.append([name])

    with Watch(block, seen).on():
        run()
    groups = [tuple(dict.fromkeys(group)) for group in found]
    called = {name for group in groups for name in group}
    parameters = dict(block.named_parameters())
    owners = [name.rpartition(".")[0] for group in groups for name in group]
    stacked = dict.fromkeys(owner for owner in owners if owner in parameters)
    everything = [*linears(block), *(f"{name}.{e}" for name in stacked for e in range(len(parameters[name])))]
    rest = [(name,) for name in everything if name not in called]
    return Plan((*groups, *rest), not rest and not stacked and calls == len(everything))


class Hessian:
    """H = 2 X Xᵀ / N of one input: products of each batch, added up in fp64.

    So wide a sum of fp32 numbers is exact but for rare last bits: it does not depend on the batches' order, nor on
    which of several processes added which.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.total = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in x (..., columns)."""
        x = x.detach().reshape(-1, x.shape[-1])
        native = x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        x = x if native else x.float()
        for start in range(0, x.shape[1], PANEL):
            left, right = x[:, start : start + PANEL], x[:, start:]
            product = _bfloat16_product(left, right) if native else left.T @ right
            self.total[start : start + PANEL, start:] += product
        self.tokens += len(x)

    @property
    def matrix(self) -> Tensor:
        """(columns, columns), symmetric, fp32."""
        upper = self.total.float().triu()
        return (upper + upper.triu(1).T) * (2 / max(1, self.tokens))


def _bfloat16_product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right in fp32, of bfloat16 inputs with a CPU's own bfloat16 instructions: twice as fast as in fp32.

    Each chunk of tokens gives the difference to the first chunk's product, so that what is rounded to bfloat16 is the
    small change from chunk to chunk, not the large common part. H is then off by about a thousandth of its mean
    diagonal (spectral norm), a tenth of the usual dampening.
    """
    known = left[:CHUNK].T @ right[:CHUNK]
    total = torch.zeros(known.shape)
    for a, b in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
        total += torch.addmm(known, a.T, b, beta=-len(a) / len(left[:CHUNK]))
    return total.add_(known, alpha=len(left) / len(left[:CHUNK]))
