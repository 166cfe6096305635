"""The parameters on their way: AdamW's steps, the best of them so far, and the state from which learning goes on.

AdamW moves them in fp32, whatever the model's dtype. What is best is judged on text that is held out.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.learning.learned import Learned, Step
from ctplab.learning.objective import nll
from ctplab.learning.state import check_room, load_state, save_state
from ctplab.learning.step import Learnable
from ctplab.learning.windows import Windows
from ctplab.prompts.head import Halves
from ctplab.scores import Score, predicted
from ctplab.specs import PromptSpec

P = TypeVar("P")


class Course(Generic[P]):
    """The parameters as they move, and the best of them so far, judged on the text that is held out."""

    def __init__(
        self, learnable: Learnable[P], cuts: list[Halves], held_out: Windows, spec: PromptSpec, result: Learned[P]
    ) -> None:
        self.learnable, self.result = learnable, result
        self._cuts, self._held_out, self._spec = cuts, held_out, spec
        self._moving = list(learnable.parameters.values())
        self._best = dict[str, Tensor]()
        self.optimizer = torch.optim.AdamW(self._moving, lr=spec.lr, weight_decay=spec.weight_decay)
        result.validation_tokens = held_out.targets
        result.values = sum(p.numel() for p in self._moving)

    def begin(self, state: Path | None, identity: dict[str, Any]) -> int:
        """Go on from ``state`` if it is there, otherwise measure the start. Returns the first step to take."""
        parameters, result, first = self.learnable.parameters, self.result, 0
        if state is not None:
            check_room(state, result.values)
        kept = None if state is None else load_state(state, parameters, self.optimizer, identity)
        if kept is not None:
            self._best, record = kept
            result.prefix, first = self.learnable.frozen(self._best), record["step"]
            result.best_step, result.best_validation = record["best_step"], record["best_validation"]
            result.steps[:] = [Step(**step) for step in record["curve"]]
            result.before = record.get("before", math.inf)
        else:
            self._best = self._copy()
            result.before = result.best_validation = self._validate()
        parallel.wait()  # no process writes the state before all have read it
        return first

    def move(self, loss: Tensor) -> Tensor:
        """Take the step that the gradients of all processes ask for. Returns loss and gradient norm (2,)."""
        parallel.add_up([loss, *(p.grad for p in self._moving if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self._moving, self._spec.clip)
        self.optimizer.step()
        return torch.stack([loss, norm.to(loss)])

    def measure(self, step: int) -> float:
        """Validate after ``step``, and keep what is better than all before."""
        measured = self._validate()
        result = self.result
        if measured < result.best_validation:
            self._best.clear()  # codes are many: not two of the best at a time
            self._best = self._copy()
            frozen = self.learnable.frozen(self._best)
            result.prefix, result.best_validation, result.best_step = frozen, measured, step + 1
        return measured

    def save(self, state: Path, identity: dict[str, Any], step: int) -> None:
        """Write all that learning needs to go on with ``step``."""
        result = self.result
        record = {"step": step, "best_step": result.best_step, "best_validation": result.best_validation}
        record |= {"before": result.before, "curve": [asdict(s) for s in result.steps]}
        save_state(state, self.learnable.parameters, self.optimizer, self._best, identity, record)

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.learnable.parameters.items()}

    @torch.no_grad()
    def _validate(self) -> float:
        """NLL a target of the text that is held out, the mean over the models."""
        text = self._held_out
        total = torch.zeros((), dtype=torch.float64, device=text.ids.device)
        for cut in self._cuts:
            vocabulary = cut.model.get_output_embeddings().weight.shape[0]
            kv = self.learnable.kv(cut.model)
            for part in parallel.share(torch.arange(len(text.ids))).split(self._spec.batch):
                if len(part):
                    ids, masks = text.take(part)
                    states, targets = predicted(cut.states(kv, ids), ids, masks)
                    total += nll(states, cut.head, vocabulary, targets).double().to(total.device)
        parallel.add_up([total])
        return Score(float(total) / len(self._cuts), text.targets).mean
