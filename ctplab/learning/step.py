"""The gradient of one batch, as a function of tensors alone, so that a card can record it once and replay it.

It reads window numbers and the parameters, and writes the parameters' gradients. It asks the device nothing (no
``item``, no shapes that depend on values), unless windows have masks and their targets are picked out: a card weighs
all positions instead. See ``learning/graph`` for what is made of that.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.compression.kernels.usable import usable
from ctplab.compression.linear import PackedLinear
from ctplab.learning.fused import Fused
from ctplab.learning.objective import Target, Taught, hidden_loss, mixed_loss
from ctplab.learning.pieces import chunk_on, pieces_on_card
from ctplab.learning.teacher import Teacher, TopKTeacher
from ctplab.learning.windows import Windows
from ctplab.models import Model
from ctplab.models.anatomy import blocks, embeddings
from ctplab.prompts.compiled import KV
from ctplab.prompts.head import Halves
from ctplab.prompts.together import fits, together
from ctplab.scores import predicted
from ctplab.specs import PromptSpec

P_co = TypeVar("P_co", covariant=True)


class Learnable(Protocol[P_co]):
    """Parameters to learn, and the keys and values that they put in front of a model."""

    k: int
    """Number of positions that they take."""
    random: bool
    """True if a step draws random numbers (dropout)."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The fp32 leaf tensors by name."""
        ...

    @property
    def rows(self) -> Tensor | None:
        """The rows (k, d) that stand in front of every text, or None if other things are learned."""
        ...

    def kv(self, model: Model) -> KV:
        """Compute the keys and values in front of every text, differentiable in the parameters."""
        ...

    def frozen(self, values: dict[str, Tensor]) -> P_co:
        """Build the result from these values of the parameters."""
        ...


@dataclass(frozen=True)
class Gradient:
    """The gradient of a batch's loss through one model."""

    learnable: Learnable
    cut: Halves
    text: Windows
    spec: PromptSpec
    teacher: Teacher | None
    chunk: int
    """Values of logits at a time."""
    one_row: bool
    """Prefix and texts pass the model as one long row (see ``prompts/together``), not in two passes."""
    fused: Fused | None
    """Faster versions of some of the model's layers."""
    pieces: int
    """A batch passes the model in so many pieces."""
    masks: Tensor | None
    """The windows' masks on the device, if all positions count and other tokens than targets weigh nothing."""

    @classmethod
    def of(
        cls, learnable: Learnable, cut: Halves, text: Windows, spec: PromptSpec, teacher: Teacher | None
    ) -> "Gradient":
        """Choose how to compute it for this model, these windows and this device."""
        device = embeddings(cut.model).device
        share = -(-min(spec.batch, len(text.ids)) // parallel.size())
        halved = pieces_on_card(_weights(cut.model), share, text.ids.shape[1]) if device.type == "cuda" else 1
        pieces = max(spec.accumulate, halved)
        batch = -(-share // pieces)
        one_row = learnable.rows is not None and fits(cut, learnable.k, batch, text.ids.shape[1])
        weighed = text.masks is not None and usable(device) and not isinstance(teacher, TopKTeacher)
        weighed = weighed and embeddings(cut.model).dtype != torch.float64  # the loss's kernel takes the weights
        masks = text.masks.to(device) if weighed and text.masks is not None else None
        return cls(learnable, cut, text, spec, teacher, chunk_on(device), one_row, Fused.of(cut.model), pieces, masks)

    def _states(self, ids: Tensor) -> Tensor:
        rows = self.learnable.rows
        if rows is not None and self.one_row:
            return together(self.cut.model, rows, ids)
        return self.cut.states(self.learnable.kv(self.cut.model), ids)

    def _loss(self, states: Tensor, targets: Tensor, target: Target | None, weights: Tensor | None) -> Tensor:
        """The loss of hidden states (n, d), summed over their targets (n,) by weight (None: 1)."""
        spec, loss = self.spec, torch.zeros((), device=states.device)
        if spec.hidden < 1:
            how = {"kl": spec.kl, "teacher": target, "chunk": self.chunk, "fused": usable(states.device)}
            vocabulary = self.cut.model.get_output_embeddings().weight.shape[0]
            loss = mixed_loss(states, self.cut.head, vocabulary, targets, **how, weights=weights)
        if spec.hidden > 0:
            assert isinstance(target, Taught)
            away = hidden_loss(states, target.states.to(states.device), weights)
            loss = (1 - spec.hidden) * loss + spec.hidden * away
        return loss

    def __call__(self, numbers: Tensor, n_targets: int | Tensor) -> Tensor:
        """Leave the gradient of these windows (B,) on the parameters. Returns their loss, both over ``n_targets``.

        Without windows there is no loss and no gradient.
        """
        for p in self.learnable.parameters.values():
            assert p.grad is not None
            p.grad.zero_()
        total = torch.zeros((), device=self.text.ids.device)
        for part in numbers.tensor_split(self.pieces):
            if len(part) == 0:
                continue
            ids, masks, weights = self._take(part)
            target = self.teacher.target(part, ids, masks) if self.teacher is not None else None
            with self.fused.on() if self.fused else nullcontext():
                states, targets = predicted(self._states(ids), ids, masks)
                loss = self._loss(states, targets, target, weights) / n_targets
                loss.backward()
            total += loss.detach().to(total.device)
        return total

    def _take(self, numbers: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The windows (B, T) of these numbers, and their masks (B, T), or the weights of their targets (n,)."""
        if self.masks is None:
            ids, masks = self.text.take(numbers)
            return ids, masks, None
        numbers = numbers.to(self.masks.device)
        return self.text.ids[numbers], None, self.masks[numbers][:, 1:].flatten().float()


def _weights(model: Model) -> int:
    """The number of weights in the matrices of the blocks, dense or packed."""
    inside = [block for _, block in blocks(model)]
    dense = sum(p.numel() for block in inside for p in block.parameters() if p.ndim > 1)
    packed = [layer for block in inside for layer in block.modules() if isinstance(layer, PackedLinear)]
    return dense + sum(layer.in_features * layer.out_features for layer in packed)
