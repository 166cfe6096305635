"""Learns what a compressed model can change without a new byte: scales, norms, kept values, and the codes themselves.

All masks stay as they are, and codes too unless they are learned. The loop is the one that learns prompts. Each kind is
a function of free parameters u that start at no change:

    scales     W·(1 + u/10), one u for each grid (row, or group of a row)
    norms      w + |w|·u/10, with |w| the root mean square of that parameter, or 1 for a parameter of zeros
    low-rank   W + mask·(B·A)·|W|/10, A random with rows of length 1, B zero; |W| of the kept values
    codes      scale·(round(code + u/20) - zero), one u for each weight that need not start at 0 (``learning/codes``);
               W + mask·|W|·u/100 if the matrix is pruned only

With the tenth a step of AdamW moves each by about a tenth of the learning rate, so one rate suits all of them. Codes
and kept values are so many that less is enough. Codes take 16 bytes a weight: u, its gradient and AdamW's two moments.
A soft prompt can be learned with them in the same loop: its rows then stand in front of the model that changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctplab.compression.packing import group_of, kept_of
from ctplab.errors import InputError
from ctplab.formats.tuned import KINDS, bits_of, grids
from ctplab.learning.codes import Codes
from ctplab.learning.learned import Learned
from ctplab.learning.loop import finish, take_steps
from ctplab.learning.rows import Rows
from ctplab.learning.teacher import Teacher, full_of
from ctplab.models import Model
from ctplab.models.anatomy import as_matrix
from ctplab.progress import Progress, bar
from ctplab.prompts.compiled import KV
from ctplab.prompts.prefix import Prefix
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split

RATE = 0.1
"""A learning rate that suits these changes, alone or with a prompt; docs/results.md has what others reach."""
STEP = 0.1
"""How much a parameter moves in units of the learning rate, relative to what it changes."""
VALUE_STEP = 0.01
"""The same for single kept values of a pruned matrix."""


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


def _rms(x: Tensor) -> float:
    size = float(x.float().square().mean().sqrt())
    return size if size > 0 else 1.0


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
        self.model, self._changed = model, list[tuple[nn.Module, str]]()
        self.parameters: dict[str, Tensor] = {}
        self._unit, self._codes = dict[str, float](), dict[str, Codes]()
        packed, self._bits = grids(folder, codes="codes" in what), bits_of(folder)
        if "low-rank" in what and any("scale" in parts for parts in packed.values()):
            raise InputError("low-rank updates need a pruned model that is not quantised: codes cannot take them")
        generator = torch.Generator().manual_seed(seed)
        for unit, parts in packed.items() if {*what} - {"norms"} else ():
            self._matrix(unit, parts, what, rank, generator, full)
        if "norms" in what:
            self._norms()
        for p in self.parameters.values():
            p.requires_grad_(True)
        self._rows = None if prompt is None else Rows(prompt, model)
        self.k = 0 if self._rows is None else self._rows.k
        self.parameters |= {} if self._rows is None else self._rows.parameters

    @property
    def rows(self) -> Tensor | None:
        return None if self._rows is None else self._rows.rows

    def _matrix(
        self,
        unit: str,
        parts: dict[str, Tensor],
        what: Sequence[str],
        rank: int,
        generator: torch.Generator,
        full: Model | None,
    ) -> None:
        try:
            layer = self.model.get_submodule(unit)
            matrix = as_matrix(layer)
        except AttributeError:
            raise InputError(f"{unit} is one of several stacked experts, which cannot be tuned") from None
        device, (rows, columns) = matrix.device, matrix.shape
        changes: list[Callable[[Tensor], Tensor]] = []
        if "codes" in what:
            changes.append(self._each_weight(unit, parts, matrix, _matrix_of(full, unit)))
        if "scales" in what:
            u = self.parameters[f"scale:{unit}"] = torch.zeros(
                parts["scale"].shape if "scale" in parts else (rows, 1), device=device
            )
            of_column = None
            if u.shape[1] > 1:  # (groups, in): 1 where the column is of that group; a product has a fixed order of sums
                of_column = nn.functional.one_hot(group_of(parts), u.shape[1]).T.to(device, matrix.dtype)
            changes.append(lambda w: w * _factor(u, of_column).to(w.dtype))
        if "low-rank" in what:
            mask = kept_of(parts).to(device)
            right = torch.randn(rank, columns, generator=generator)
            right /= right.norm(dim=1, keepdim=True)
            left = self.parameters[f"left:{unit}"] = torch.zeros(rows, rank, device=device)
            right = self.parameters[f"right:{unit}"] = right.to(device)
            size = self._unit[unit] = STEP * _rms(matrix[mask])
            changes.append(lambda w: w + mask * (left @ right * size).to(w.dtype))
        upright = isinstance(layer, nn.Linear)

        def change(weight: Tensor) -> Tensor:
            w = weight if upright else weight.T
            for each in changes:
                w = each(w)
            return w if upright else w.T

        self._put(layer, "weight", change)

    def _each_weight(
        self, unit: str, parts: dict[str, Tensor], matrix: Tensor, full: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """The change of single weights: of their codes, or of kept values that have none. ``full``: before rounding."""
        device, u = matrix.device, torch.zeros(matrix.shape, device=matrix.device)
        if self._bits is not None:
            codes = self._codes[unit] = Codes.of(parts, self._bits, device)
            if full is not None and full.shape == u.shape:
                u = codes.start(full.to(device))
            self.parameters[f"code:{unit}"] = u
            return lambda w: codes.weight(u, w.dtype)
        self.parameters[f"value:{unit}"] = u
        mask = kept_of(parts).to(device)
        size = self._unit[f"value:{unit}"] = VALUE_STEP * _rms(matrix[mask])
        return lambda w: w + (size * mask * u).to(w.dtype)

    def _norms(self) -> None:
        for name, parameter in list(self.model.named_parameters()):
            if parameter.ndim == 1 and parameter.is_floating_point():
                owner, _, own = name.rpartition(".")
                u = self.parameters[f"norm:{name}"] = torch.zeros(parameter.shape, device=parameter.device)
                size = self._unit[name] = STEP * _rms(parameter)
                self._put(
                    self.model.get_submodule(owner), own, lambda w, u=u, size=size: (w.float() + size * u).to(w.dtype)
                )

    def _put(self, module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
        parametrize.register_parametrization(module, name, _By(change), unsafe=True)
        self._changed.append((module, name))

    def kv(self, model: Model) -> KV:
        """The prompt's keys and values in the changed model; the changes themselves are in the model."""
        return [] if self._rows is None else self._rows.kv(model)

    def frozen(self, values: dict[str, Tensor]) -> Changes:
        """The changes that these parameters stand for, on the CPU: fp32, codes in whole steps."""
        found = {}
        prefix = None if self._rows is None else self._rows.frozen(values)
        for name, value in values.items():
            kind, _, unit = name.partition(":")
            if not unit:  # the prompt's rows
                continue
            if kind == "code":
                found[name] = self._codes[unit].steps(value.detach())
                continue
            value = value.detach().float().cpu()
            if kind == "scale":
                found[name] = 1 + STEP * value
            elif kind == "norm":
                owner, _, own = unit.rpartition(".")
                original = self.model.get_submodule(owner).parametrizations[own].original  # type: ignore[index]
                found[name] = original.detach().float().cpu() + self._unit[unit] * value
            elif kind == "value":
                found[name] = self._unit[name] * value
            else:
                found[name] = value.clone() * (self._unit[unit] if kind == "left" else 1)
        return Changes(found, prefix)

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


def _factor(u: Tensor, of_column: Tensor | None) -> Tensor:
    """The factors (out, groups) of u, or (out, in) with ``of_column`` (groups, in)."""
    return 1 + STEP * (u if of_column is None else u @ of_column.to(u.dtype))


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
