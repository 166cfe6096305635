"""Does calibration feed the blocks what the model feeds them? Tried on a few tokens before anything is solved.

``capture`` runs the blocks by themselves, with arguments that it recorded once. That is exact if the other arguments
depend on positions only. Some models hand their blocks more: embeddings of the tokens for every layer, the first hidden
states, keys and values of earlier layers. Their blocks would be calibrated on the inputs of other text. So here the
model reads a few tokens as it is, and the captured flow reads them beside it, block by block: both must agree.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctplab.compression.capture import capture
from ctplab.errors import InputError
from ctplab.models import Model

WINDOWS, TOKENS = 2, 16
NOISE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference that rounding explains, relative to the largest hidden state."""
HALF_NOISE = 0.05

Visit = Callable[[int, nn.Module], object]


class _Differs(Exception):
    """The flow and the model disagree at a block's input."""


def shares_weights(modules: list[nn.Module]) -> bool:
    """Whether a weight belongs to two blocks: the first would compress it, and the second compress it again."""
    owners: dict[int, int] = {}
    return any(owners.setdefault(id(p), i) != i for i, module in enumerate(modules) for p in module.parameters())


@torch.no_grad()
def flow_agrees(model: Model, modules: list[nn.Module], calibration: Tensor, enter: Visit, leave: Visit) -> bool:
    """Whether the captured flow through ``modules`` is the model's own on the first tokens of ``calibration`` (N, T).

    ``enter`` puts a block's weights in place and ``leave`` may drop them; the first block's are in place.
    """
    first = calibration[:WINDOWS, :TOKENS]
    flow = capture(model, modules, (first, first.flip(1)))  # the arguments are recorded on other tokens
    entered: list[int] = []

    def check(states: Tensor) -> None:
        mine, noise = flow.hidden[1], NOISE.get(states.dtype, HALF_NOISE)
        if mine.shape != states.shape or not ((mine - states).abs() <= noise * states.abs().max()).all():
            raise _Differs

    def real(index: int, module: nn.Module) -> Callable:
        def call(*args, **kwargs):
            if entered != list(range(index)):
                raise _Differs  # the model's own order is another, or it calls a block twice
            entered.append(index)
            if index:
                enter(index, module)
            check(args[0] if args else kwargs["hidden_states"])
            del module.forward
            out = module(*args, **kwargs)
            for one in (1, 0):  # the other text comes last: what it leaves behind must not matter to the next block
                flow.step(one, index, module)
            leave(index, module)
            if index == len(modules) - 1:
                check(out[0] if isinstance(out, tuple | list) else out)
            return out

        return call

    for index, module in enumerate(modules):
        module.forward = real(index, module)
    try:
        model(input_ids=first.flip(1), use_cache=False)
    except InputError:
        raise
    except Exception:  # the flow may fail in any way where it is not the model's
        return False
    finally:
        for module in modules:
            vars(module).pop("forward", None)
    return len(entered) == len(modules)
