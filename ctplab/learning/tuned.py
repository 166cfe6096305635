"""Learns what a compressed model can change without a new byte: scales, norms, kept values, and the codes themselves.

All masks stay as they are, and codes too unless they are learned. The loop is the one that learns prompts. Each kind is
a function of free parameters u (``learning/updates``):

    scales     W·(1 + u/10), one u for each grid (row, or group of a row)
    norms      w + |w|·u/10, with |w| the root mean square of that parameter, or 1 for a parameter of zeros
    low-rank   W + mask·(B·A)·|W|/10, A random with rows of length 1, B zero; |W| of the kept values;
               of quantised weights inside the rounding, like codes whose u is a start + B·A
    codes      scale·(round(code + u/20) - zero), one u for each weight that need not start at 0 (``learning/codes``);
               W + mask·|W|·u/100 if the matrix is pruned only

Codes take 25 bytes a weight on a CPU, low-rank updates of quantised weights 7 and a step's 4 (``memory_tuned``). A soft
prompt can be learned with them in the same loop: its rows then stand in front of the model that changes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctplab.errors import InputError
from ctplab.formats.tuned import KINDS, bits_of, grids
from ctplab.learning import updates
from ctplab.learning.learned import Learned
from ctplab.learning.loop import finish, take_steps
from ctplab.learning.rows import Rows
from ctplab.learning.teacher import Teacher, full_of
from ctplab.learning.updates import Parts, Update
from ctplab.models import Model
from ctplab.models.anatomy import as_matrix
from ctplab.progress import Progress, bar
from ctplab.prompts.compiled import KV
from ctplab.prompts.prefix import Prefix
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split

RATE = 0.1
"""A learning rate that suits these changes, alone or with a prompt; docs/results.md has what others reach."""


@dataclass(frozen=True)
class Changes:
    """What was learned, in the words of ``formats.tuned.fold``: ``scale:UNIT``, ``norm:NAME``, ``code:UNIT``, ..."""

    tensors: dict[str, Tensor] = field(repr=False)
    prefix: Prefix | None = None
    """The soft prompt that was learned with them."""


class _By(nn.Module):
    """A parameter as a function of itself; the frozen original stays where it is."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, original: Tensor) -> Tensor:
        return self.change(original)


class Tuned:
    """The learnable changes of ``model``, which was loaded from the compressed ``folder`` and is not packed.

    ``what``: kinds of ``formats.tuned.KINDS``. ``prompt``: rows to learn with them, in front of every text. ``full``:
    the model that was compressed, if it is there; codes then start where its weights lie in their cells.
    :meth:`remove` takes all changes off again. Raises InputError if the model has nothing of such a kind.
    """

    random = False

    def __init__(
        self,
        model: Model,
        folder: Path,
        what: Sequence[str],
        rank: int = 8,
        seed: int = 0,
        prompt: Prefix | None = None,
        full: Model | None = None,
    ) -> None:
        if not what or not set(what) <= set(KINDS):
            raise InputError(f"what to tune: one or more of {', '.join(KINDS)}, not {','.join(what) or 'nothing'}")
        self.model, self._changed, self._updates = model, list[tuple[nn.Module, str]](), list[Update]()
        packed, bits = grids(folder, codes={"codes", "low-rank"} & {*what} != set()), bits_of(folder)
        if bits and {"codes", "low-rank"} <= {*what}:
            raise InputError("both codes and low-rank move the codes of a quantised model: choose one of them")
        generator = torch.Generator().manual_seed(seed)
        layers = {unit: self._matrix(unit) for unit in packed} if {*what} - {"norms"} else {}
        for unit, (layer, matrix) in layers.items():
            right = None
            if "low-rank" in what:
                right = torch.randn(rank, matrix.shape[1], generator=generator)
                right /= right.norm(dim=1, keepdim=True)
            self._put(
                layer, "weight", [*_of_matrix(unit, packed[unit], bits, what, matrix, _matrix_of(full, unit), right)]
            )
        if "norms" in what:
            self._norms()
        self.parameters = {name: p for update in self._updates for name, p in update.parameters.items()}
        for p in self.parameters.values():
            p.requires_grad_(True)
        self._rows = None if prompt is None else Rows(prompt, model)
        self.k = 0 if self._rows is None else self._rows.k
        self.parameters |= {} if self._rows is None else self._rows.parameters

    @property
    def rows(self) -> Tensor | None:
        return None if self._rows is None else self._rows.rows

    def _matrix(self, unit: str) -> tuple[nn.Module, Tensor]:
        """The layer and its weight, (out, in). Raises InputError if they are no layer of their own."""
        try:
            layer = self.model.get_submodule(unit)
            return layer, as_matrix(layer)
        except AttributeError:
            raise InputError(f"{unit} is one of several stacked experts, which cannot be tuned") from None

    def _norms(self) -> None:
        for name, parameter in list(self.model.named_parameters()):
            if parameter.ndim == 1 and parameter.is_floating_point():
                owner, _, own = name.rpartition(".")
                self._put(self.model.get_submodule(owner), own, [updates.norm(name, parameter)])

    def _put(self, module: nn.Module, name: str, changes: Sequence[Update]) -> None:
        """Let the module's parameter change; that of a Conv1D lies the other way round than a linear layer's."""
        upright = isinstance(module, nn.Linear) or module.get_parameter(name).ndim == 1

        def change(weight: Tensor) -> Tensor:
            w = weight if upright else weight.T
            for each in changes:
                w = each.change(w)
            return w if upright else w.T

        self._updates += changes
        parametrize.register_parametrization(module, name, _By(change), unsafe=True)
        self._changed.append((module, name))

    def kv(self, model: Model) -> KV:
        """The prompt's keys and values in the changed model; the changes themselves are in the model."""
        return [] if self._rows is None else self._rows.kv(model)

    def frozen(self, values: dict[str, Tensor]) -> Changes:
        """The changes that these parameters stand for, on the CPU: fp32, codes in whole steps."""
        detached = {name: value.detach() for name, value in values.items()}
        found = [update.found(detached) for update in self._updates]
        prefix = None if self._rows is None else self._rows.frozen(values)
        return Changes({name: change.cpu() for each in found for name, change in each.items()}, prefix)

    def now(self) -> Changes:
        """The changes as they are."""
        return self.frozen({name: p.detach() for name, p in self.parameters.items()})

    def start(self) -> Learned[Changes]:
        """Make a result that holds no change yet and no steps."""
        return Learned(self.now(), self.now())

    def remove(self) -> Model:
        """Take the changes off and return the model with its own weights."""
        for module, name in self._changed:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        self._changed.clear()
        return self.model.requires_grad_(False)


def _matrix_of(model: Model | None, unit: str) -> Tensor | None:
    """The weight (out, in) of a layer, or None if there is no such layer with a weight of its own."""
    try:
        return None if model is None else as_matrix(model.get_submodule(unit))
    except AttributeError:
        return None


def _of_matrix(
    unit: str,
    parts: Parts,
    bits: int | None,
    what: Sequence[str],
    matrix: Tensor,
    full: Tensor | None,
    right: Tensor | None,
) -> Iterator[Update]:
    """The updates of one matrix, in the order in which they are made: of codes before their scale."""
    if "codes" in what:
        yield updates.codes(unit, parts, bits, matrix, full) if bits else updates.values(unit, parts, matrix)
    if right is not None and bits:
        yield updates.low_rank_codes(unit, parts, bits, matrix, full, right)
    if "scales" in what:
        yield updates.scales(unit, parts, matrix)
    if right is not None and not bits:
        yield updates.low_rank(unit, parts, matrix, right)


def learn_tuned(
    model: Model,
    folder: Path,
    what: Sequence[str],
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    rank: int = 8,
    prompt: Prefix | None = None,
    teacher: Model | Teacher | None = None,
    state: Path | None = None,
    progress: Progress = bar,
) -> Learned[Changes]:
    """Learn changes of ``model``, loaded from ``folder``; the model is as it was afterwards.

    ``prompt``: rows to start a soft prompt from, which is learned in the same loop. ``spec.tokens`` and ``spec.init``
    have no effect here (``rows.initial_rows`` makes such a prompt of them). If ``teacher`` is the full model itself,
    codes start where its weights lie in their cells (``learning/codes``). ``formats.tuned.fold`` writes the changes
    into a folder.
    """
    tuned = Tuned(model, folder, what, rank, spec.seed, prompt, full_of(teacher))
    try:
        result = tuned.start()
        steps: Any = take_steps(tuned, [model], train, validation, spec, result, teacher=teacher, state=state)
        return finish(steps, result, spec, progress)
    finally:
        tuned.remove()
