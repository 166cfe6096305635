"""Find a model's parts by inspection: blocks, linear layers, embeddings, context length. Names no architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ctplab.errors import InputError
from ctplab.models import Model


@contextmanager
def eager_experts(model: Model) -> Iterator[None]:
    """Inside the block, mixture-of-experts layers compute each expert by plain products, which can be watched."""
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def blocks(model: Model) -> list[tuple[str, nn.Module]]:
    """The decoder blocks in order with their names: the largest module list with linear layers (packed ones too)."""

    def counts(block: nn.Module) -> bool:
        return bool(linears(block)) or any(hasattr(module, "in_features") for module in block.modules())

    def numbers(module: nn.Module) -> int:
        return sum(t.numel() for t in (*module.parameters(), *module.buffers()))

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(name, module) for name, module in lists if len(module) and counts(module[0])]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of decoder blocks with linear layers")
    name, found = max(lists, key=lambda pair: numbers(pair[1]))
    return [(f"{name}.{index}", block) for index, block in enumerate(found)]


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """``nn.Linear`` and GPT-2's ``Conv1D`` layers of a block, by name inside the block."""
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def as_matrix(layer: nn.Module) -> Tensor:
    """A view of the layer's weight as (out, in), in whichever orientation it is stored."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.T


def is_packed(module: nn.Module) -> bool:
    """Whether ``module`` is a ``PackedLinear``. A ``dense`` tells nothing: BLOOM and NeoX have one."""
    return hasattr(module, "part_names")


def block_matrices(model: Model) -> Iterator[Tensor]:
    """The blocks' weights of at least two dimensions, in order, linears as (out, in); packed ones are unpacked here."""
    from transformers.pytorch_utils import Conv1D

    for _, block in blocks(model):
        for module in block.modules():
            packed: Any = module
            if is_packed(module):
                yield packed.dense(torch.float32)
            elif isinstance(module, nn.Linear | Conv1D):
                yield as_matrix(module)
            else:
                yield from (p for p in module.parameters(recurse=False) if p.ndim > 1)


def weight_matrix(module: nn.Module, unit: str) -> Tensor:
    """An (out, in) view of the linear called ``unit`` in ``module``, or of one expert (``experts.down_proj.3``)."""
    parent, _, last = unit.rpartition(".")
    if last.isdigit():
        owner, _, name = parent.rpartition(".")
        stack = getattr(module.get_submodule(owner), name)
        if isinstance(stack, nn.Parameter):
            matrix = stack[int(last)]
            return matrix.T if transposed(module.get_submodule(owner)) else matrix
    return as_matrix(module.get_submodule(unit))


def transposed(experts: nn.Module) -> bool:
    """Whether stacked experts are stored as (experts, in, out), as transformers notes on their module."""
    return bool(getattr(experts, "is_transposed", False))


def parameter_name(unit: str, model: nn.Module) -> str:
    """The name of the parameter that holds a unit: a linear's weight, or the stack of experts."""
    stack, _, last = unit.rpartition(".")
    return stack if last.isdigit() and isinstance(getattr_path(model, stack), nn.Parameter) else f"{unit}.weight"


def getattr_path(model: nn.Module, name: str) -> object:
    """The module or parameter called ``name``, or None if there is none."""
    found: object = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def embeddings(model: Model) -> Tensor:
    """The input embedding matrix, (vocabulary, d). OPT-350m: d is ``word_embed_proj_dim``."""
    return model.get_input_embeddings().weight


def embed(model: Model, ids: Tensor) -> Tensor:
    """Embed ``ids`` (...) as the model itself does, (..., d): scaled if its embedding module scales."""
    return model.get_input_embeddings()(ids.to(embeddings(model).device))


def check_ids(model: Model, ids: Tensor) -> None:
    """Raise InputError if one of ``ids`` (...) is beyond the embedding matrix: a token that the model was never given.

    That happens if words were added to a tokenizer, such as ``[PAD]``, and not to the model.
    """
    rows, largest = embeddings(model).shape[0], int(ids.max()) if ids.numel() else 0
    if largest >= rows:
        raise InputError(
            f"the text holds token {largest}, but the model has embeddings for 0 to {rows - 1} only: its tokenizer has "
            "added words that the model was never given; take them out of the tokenizer, or resize the model"
        )


def context_length(model: Model) -> int | None:
    """The largest number of positions that the model takes, or None if nothing bounds it (ALiBi)."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        limit = getattr(config, key, None)
        if isinstance(limit, int) and limit > 0:  # XLNet: -1
            return limit
    return None


def check_context(model: Model, k: int, length: int) -> None:
    """Raise InputError, with a length that fits, if k prefix rows and windows of ``length`` tokens do not fit.

    For several prefixes give the longest one's k: what is proposed then works with all of them.
    """
    limit = context_length(model)
    if limit is not None and k + max(2, length) > limit:
        raise InputError(f"{_too_many(k, length, 0, limit)}; use a sequence length of at most {limit - k}")


def check_text(model: Model, k: int, length: int, new: int = 0) -> None:
    """The same for k prefix rows, a text of ``length`` tokens, and ``new`` ones behind it."""
    limit = context_length(model)
    if limit is None or k + max(2, length + new) <= limit:
        return
    said, room = _too_many(k, length, new, limit), limit - k
    if length < room:
        raise InputError(f"{said}; ask for at most {room - length} new tokens, or give a shorter text")
    if new < room:
        raise InputError(f"{said}; give a text of at most {room - new} tokens")
    raise InputError(f"{said}; text and new tokens together may be {room}")


def _too_many(k: int, length: int, new: int, limit: int) -> str:
    """What does not fit, in words. Raises InputError if no text would."""
    if k + 2 > limit:
        raise InputError(f"a prompt of {k} rows leaves no room for a text: the model takes {limit} positions")
    parts = f"{k} prompt tokens + {length} text tokens" + (f" + {new} new tokens" if new else "")
    return f"{parts} = {k + length + new} positions, but the model takes {limit}"
