"""Record what flows through a model's blocks: their inputs, their other arguments, and which weights share an input.

This file finds everything by running the model and names no architecture. A *unit* is one weight matrix (out, in) that
can be compressed: a linear layer, or one expert's slice of a stacked (experts, out, in) parameter.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ctplab.models import Model
from ctplab.models.anatomy import linears

PASS = {"cpu": 2048, "cuda": 8192}
"""Tokens per forward pass: few enough that a CPU's cache holds the activations between two steps; enough to keep a card
busy."""


PRODUCTS = (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__)
"""How an expert multiplies: x Wᵀ by ``linear``, or x W with a stack stored as (experts, in, out)."""


class Stop(Exception):
    """Ends a forward pass once the caller has seen all it needs."""


@dataclass(frozen=True)
class Call:
    """A block's arguments besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's new hidden states. The block may return them bare, or first in a tuple or list."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple | list) else out


@dataclass
class Flow:
    """The hidden states of every pass, on their way through the blocks."""

    hidden: list[Tensor]
    calls: dict[int, list[Call]]
    """Number of windows in a pass -> the other arguments of every block."""
    batches: list[range]
    """The passes of each batch. A Hessian sums the products of a batch before it adds them to its total."""

    def run(self, i: int, index: int, block: nn.Module) -> Tensor:
        """Return the outputs of block ``index`` in pass ``i``."""
        return self.calls[len(self.hidden[i])][index].run(block, self.hidden[i])

    def sample(self, index: int, block: nn.Module) -> Tensor:
        """Run block ``index`` on one window."""
        return self.calls[1][index].run(block, self.hidden[0][:1])

    def step(self, i: int, index: int, block: nn.Module) -> None:
        """Replace the hidden states of pass ``i`` by the block's outputs."""
        self.hidden[i] = self.run(i, index, block)

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace all hidden states by the block's outputs."""
        for i in range(len(self.hidden)):
            self.step(i, index, block)


def capture(model: Model, modules: list[nn.Module], batches: tuple[Tensor, ...]) -> Flow:
    """Run ``model`` up to its blocks and record the arguments that it calls them with.

    Stubs replace all blocks and return their inputs. Only the first block really runs, once, on a single window; so
    only it needs its weights. Its output shows whether the stubs must return a tuple.
    """
    flow = Flow([], {}, [])
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
            return (states, *returned[0][1:]) if isinstance(returned[0], tuple | list) else states

        return call

    windows = max(1, PASS.get(batches[0].device.type, PASS["cpu"]) // batches[0].shape[1])
    passes = [(batches[0][:1],), *(torch.split(batch, windows) for batch in batches)]
    for ids in chain.from_iterable(passes):
        seen: list[Call] = []
        known = len(ids) in flow.calls
        for index, module in enumerate(modules):
            module.forward = stub(index, module.forward, seen, known)
        try:
            model(input_ids=ids, use_cache=False)
        except Stop:
            pass
        finally:
            for module in modules:
                del module.forward
        if not known:
            flow.calls[len(ids)] = seen
    del flow.hidden[0]  # the pass of the single window
    ends = accumulate(len(each) for each in passes[1:])
    flow.batches = [range(start, end) for start, end in pairwise((0, *ends))]
    return flow


class Watch(TorchFunctionMode):
    """Calls ``seen(unit name, input)`` whenever ``block`` uses a unit while the watch is on."""

    def __init__(self, block: nn.Module, seen: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.seen = seen
        self.layers = linears(block)
        self.stacked = {id(p): name for name, p in block.named_parameters() if p.ndim == 3}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            stack = args[1]._base
            name = self.stacked.get(id(stack))
            if name is not None and stack is not None:
                expert = (args[1].storage_offset() - stack.storage_offset()) // args[1].numel()
                self.seen(f"{name}.{expert}", args[0])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch linear layers through forward hooks, and stacked experts through their matrix products."""

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
class Grouping:
    """The units of a block: one group of names for each input, in the order of their calls."""

    groups: tuple[tuple[str, ...], ...]
    stoppable: bool
    """True if a pass uses every unit exactly once, so that it may end at the last unit's input."""
    inputs_kept: bool = True
    """True if no pass overwrites an input later."""


def find_groups(block: nn.Module, run: Callable[[], Any]) -> Grouping:
    """Find the groups with one pass. Units that it did not use follow at the end, each in a group of its own."""
    inputs: list[Tensor] = []  # kept alive, so that identities stay unique
    versions: list[int] = []
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
        versions.append(0 if x.is_inference() else x._version)
        found.append([name])

    with Watch(block, seen).on():
        run()
    several = {name for name, lists in Counter(n for group in found for n in set(group)).items() if lists > 1}
    groups = [tuple(dict.fromkeys(n for n in group if n not in several)) for group in found]
    groups = [group for group in groups if group] + [(name,) for name in sorted(several)]  # inputs of their own
    called = {name for group in groups for name in group}
    parameters = dict(block.named_parameters())
    owners = [name.rpartition(".")[0] for group in groups for name in group]
    stacked = dict.fromkeys(owner for owner in owners if owner in parameters)
    everything = [*linears(block), *(f"{name}.{e}" for name in stacked for e in range(len(parameters[name])))]
    rest = [(name,) for name in everything if name not in called]
    kept = all(not x.is_inference() and x._version == was for x, was in zip(inputs, versions, strict=True))
    return Grouping((*groups, *rest), not rest and not stacked and calls == len(everything), kept)
