"""What flows through a model's blocks: their inputs, their other arguments, and which weights share an input.

Everything is found by running the model; no architecture is named. A *unit* is one weight matrix (out, in) that can
be compressed: a linear layer, or one expert's slice of a stacked (experts, out, in) parameter.
"""

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

PASS = 2048  # tokens of one forward pass: few enough for a CPU's cache to hold what each step hands to the next


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
    """Hidden states of every pass on their way through the blocks."""

    hidden: list[Tensor]
    calls: dict[int, list[Call]]
    """By windows a pass: the other arguments of every block."""
    batches: list[range]
    """The passes of each batch: their inputs' products are summed before they are added to a Hessian."""

    def run(self, i: int, index: int, block: nn.Module) -> Tensor:
        """The outputs of block ``index`` in pass ``i``."""
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
    """Run ``model`` up to its blocks and note what they are called with.

    All blocks are bypassed, but for the first one on a single window (so only it needs its weights): what it returns,
    the others return the same kind of.
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
            return (states, *returned[0][1:]) if isinstance(returned[0], tuple) else states

        return call

    windows = max(1, PASS // batches[0].shape[1])
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
    del flow.hidden[0]  # the single window's
    ends = accumulate(len(each) for each in passes[1:])
    flow.batches = [range(start, end) for start, end in pairwise((0, *ends))]
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
class Grouping:
    """The units of a block: names that share an input, in the order of their calls."""

    groups: tuple[tuple[str, ...], ...]
    stoppable: bool
    """Every unit is used once a pass, so that a pass may end at the last one's input."""
    inputs_kept: bool = True
    """No input is written over later in the pass."""


def find_groups(block: nn.Module, run: Callable[[], Any]) -> Grouping:
    """Find the groups by one pass. Experts that saw nothing follow at the end, each by itself."""
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
    groups = [tuple(dict.fromkeys(group)) for group in found]
    called = {name for group in groups for name in group}
    parameters = dict(block.named_parameters())
    owners = [name.rpartition(".")[0] for group in groups for name in group]
    stacked = dict.fromkeys(owner for owner in owners if owner in parameters)
    everything = [*linears(block), *(f"{name}.{e}" for name in stacked for e in range(len(parameters[name])))]
    rest = [(name,) for name in everything if name not in called]
    kept = all(not x.is_inference() and x._version == was for x, was in zip(inputs, versions, strict=True))
    return Grouping((*groups, *rest), not rest and not stacked and calls == len(everything), kept)
