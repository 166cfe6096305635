"""What learning yields: a record of every step, and the best result with its curve."""

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ctplab.learning import sanity
from ctplab.scores import Score

P = TypeVar("P")


@dataclass(frozen=True)
class Step:
    """The measurements of one learning step."""

    step: int
    loss: float
    lr: float
    seconds: float
    """Wall time, including the validation."""
    tokens_per_second: float
    """Text tokens of the batch, divided by the time without the validation."""
    validation: float | None = None
    """NLL per token on the validation windows; None if this step did not validate."""

    @property
    def note(self) -> str:
        """A line for the progress bar."""
        measured = "" if self.validation is None else f", validation {self.validation:.3f}"
        return f"loss {self.loss:.3f}{measured}, {self.tokens_per_second:.0f} tokens/s"


@dataclass
class Learned(Generic[P]):
    """The best result so far, the initial one and the learning curve."""

    prefix: P
    initial: P
    steps: list[Step] = field(default_factory=list)
    best_step: int = 0
    best_validation: float = math.inf
    validation_tokens: int = 0
    before: float = math.inf
    """NLL per token on the validation windows before the first step."""
    values: int = 0
    """Number of learned values."""
    train_tokens: int = 0
    """Number of distinct target tokens that were there to learn from."""
    epochs: float = 0.0
    """How many times all steps together read them."""
    stopped: str | None = None
    """Why learning ended early, if it did."""
    not_recorded: str | None = None
    """Why a card's steps were launched kernel by kernel, if they were."""

    @property
    def validation(self) -> Score:
        """The best prompt's score on the validation windows."""
        return Score(self.best_validation * self.validation_tokens, self.validation_tokens)

    @property
    def warnings(self) -> list[str]:
        """What curve and text say against the result, a line each; see ``learning/sanity``."""
        curve = [(0, self.before), *((s.step + 1, s.validation) for s in self.steps if s.validation is not None)]
        found = sanity.size_note(self.values, self.train_tokens, self.epochs)
        return list(filter(None, [found, sanity.curve_note(curve, self.best_step, len(self.steps))]))

    @property
    def stale(self) -> int:
        """Number of validations since the best one."""
        return sum(s.validation is not None and s.step >= self.best_step for s in self.steps)
