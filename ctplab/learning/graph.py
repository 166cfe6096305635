"""A learning step recorded once and replayed: a card then gets thousands of kernels in one launch (a CUDA graph).

Its tensors stay where they were when it was recorded (``recording``): the window numbers and the number of their
targets are written into two of them before each replay. All graphs of a run share one pool of memory, because only one
runs at a time.

What cannot be recorded: a step that waits for the host (it picks targets out of windows with masks, or its teacher does
not fit into the card's memory), one that draws random numbers (an adapter's dropout), and a model on several cards.
Such steps run as on a CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctplab.learning.step import Gradient
from ctplab.learning.teacher import TopKTeacher
from ctplab.models.anatomy import embeddings
from ctplab.recording import Recording, told

CLOSE = {torch.float32: (1e-4, 1e-2)}
"""Relative differences of the loss and of the gradient between a step and its replay. A card adds in no fixed order."""
HALF_CLOSE = (1e-3, 0.1)
"""The same in half precision. Two runs of one step through 22 blocks on an H200: no difference in the loss, up to 1.4%
in the gradient. A replay that reads what it should not has another gradient altogether."""


def obstacle(gradient: Gradient) -> str | None:
    """Why the step cannot be recorded, or None if nothing speaks against it."""
    device = gradient.text.ids.device
    if device.type != "cuda":
        return "there is no card"
    if gradient.learnable.random:
        return "dropout draws new numbers in every step"
    if gradient.text.masks is not None and gradient.masks is None:
        return "windows differ in their number of targets"
    if isinstance(gradient.teacher, TopKTeacher) and gradient.teacher.top.device != device:
        return "the teacher's probabilities do not fit into the card's memory"
    if len({p.device for p in gradient.cut.model.parameters()}) > 1:
        return "the model is spread over several cards"
    return None


class Graphed:
    """A step of fixed size. ``run``: window numbers (B,) and their targets () on the device -> loss.

    It leaves gradients on the parameters.
    """

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], numbers: Tensor, device: torch.device, pool: Any):
        """Record ``run``. Raises RuntimeError if it waits for the host, or if recording fails otherwise."""
        self._numbers = numbers.to(device, copy=True)  # the caller keeps its own
        self._targets = torch.ones((), device=device)
        self._recording = Recording(lambda: run(self._numbers, self._targets), device, pool=pool)

    def __call__(self, numbers: Tensor, n_targets: int) -> Tensor:
        """Replay the step for these windows."""
        self._numbers.copy_(numbers, non_blocking=True)
        self._targets.fill_(n_targets)
        return self._recording.replay().clone()


class Steps:
    """The gradients of all models that take turns: replayed where a step could be recorded."""

    def __init__(self, gradients: list[Gradient]) -> None:
        self.gradients = gradients
        self.obstacles = [obstacle(gradient) for gradient in gradients]
        self._graphs: dict[tuple[int, int], Graphed] = {}
        self._pool = torch.cuda.graph_pool_handle() if None in self.obstacles else None

    @property
    def obstacle(self) -> str | None:
        """Why steps are launched kernel by kernel, or None if all are replayed."""
        return next((why for why in self.obstacles if why), None)

    def __call__(self, model: int, numbers: Tensor, n_targets: int) -> Tensor:
        """The loss of these windows through model number ``model``; their gradient is left on the parameters."""
        if not self.obstacles[model]:
            graphed = self._graphed(model, numbers, n_targets)
            if graphed is not None:
                return graphed(numbers, n_targets)
        return self.gradients[model](numbers, n_targets)

    def _graphed(self, model: int, numbers: Tensor, n_targets: int) -> Graphed | None:
        """The recorded step for so many windows. None if it cannot be recorded, with the reason in ``obstacles``."""
        key = (model, len(numbers))  # another size is another graph
        try:
            if key not in self._graphs:
                self._graphs[key] = self._record(self.gradients[model], numbers, n_targets)
        except Exception as error:  # a model can fail here in any way, and run kernel by kernel all the same
            self.obstacles[model] = told(error)
            self._pool = torch.cuda.graph_pool_handle()  # a failed recording may leave it unusable
        return self._graphs.get(key)

    def _record(self, gradient: Gradient, numbers: Tensor, n_targets: int) -> Graphed:
        """Record the step, and try the recording on other windows. Raises RuntimeError if it gives other numbers."""
        device = gradient.text.ids.device
        graphed = Graphed(gradient, numbers, device, self._pool)
        others = (numbers + 1) % len(gradient.text.ids)

        def result(run: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
            loss = run(others, n_targets)
            grads = [p.grad.flatten() for p in gradient.learnable.parameters.values() if p.grad is not None]
            return loss.float().clone(), torch.cat(grads)

        step, replay = result(gradient), result(graphed)
        allowed = CLOSE.get(embeddings(gradient.cut.model).dtype, HALF_CLOSE)
        if not (_apart(replay, step) <= torch.tensor(allowed, device=device)).all().item():
            raise RuntimeError("a replay gives other numbers than the step")
        return graphed


def _apart(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """How far two losses and two gradients are apart, relative to the second's: (2,)."""
    return torch.stack([(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(one, other, strict=True)])
