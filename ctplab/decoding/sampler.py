"""How the next token is chosen: greedy or by seeded sampling, the same for a batch, a stream and every arm.

Each answer draws from a generator of its own, never from torch's global one, so answers that are made at the same
time do not disturb each other. One number is drawn a step and serves all rows of a batch. So a text's answer does not
depend on its batch mates, and two arms with one seed are compared on the same luck. (Several independent answers to
one text need several seeds.)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError


@dataclass(frozen=True)
class Sampler:
    """Greedy by default. The same sampler gives the same text on the same machine, versions and number of threads."""

    temperature: float = 0.0
    """0: the most likely token; 1: the model's own distribution."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the text so far become less likely (CTRL, arXiv 1909.05858). A prefix has no tokens."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 0.01 <= self.temperature < math.inf):  # below it, logits overflow
            raise InputError(f"temperature must be 0 (greedy) or at least 0.01, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"repetition_penalty must be above 0 (1 = none), not {self.repetition_penalty}")


GREEDY = Sampler()


def inverse_cdf(scores: Tensor, u: float) -> Tensor:
    """The token at which each row's cumulated softmax passes u: ``scores`` (B, V), u in [0, 1) -> (B,)."""
    cdf = scores.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, u * cdf[:, -1:], right=True)[:, 0]


def refuse_nan(scores: Tensor) -> Tensor:
    """``scores`` as they are. Raises InputError if any is NaN: a token chosen among them would mean nothing."""
    if torch.isnan(scores).any():
        raise InputError("the model gives NaN: no token can be chosen; try dtype='float32'")
    return scores


class RefuseNaN:
    """Logits processor that changes nothing, and raises InputError for NaN."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return refuse_nan(scores)


class UnpaddedRepetition:
    """Logits processor that applies ``penalty`` to the tokens of texts and answers, but not to left padding.

    transformers counts padding as text. So each padding token is shown to it as the row's last token, which counts
    anyway.
    """

    def __init__(self, penalty: Any, padding: Tensor) -> None:
        self.penalty, self.padding = penalty, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        padding = torch.nn.functional.pad(self.padding, (0, input_ids.shape[1] - self.padding.shape[1]))
        return self.penalty(torch.where(padding, input_ids[:, -1:], input_ids), scores)


class Draw:
    """Logits processor that leaves one sampled token a row, so that ``generate`` has nothing left to choose."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        u = torch.rand((), generator=self.generator, dtype=torch.float64).item()
        return torch.full_like(scores, -math.inf).scatter_(1, inverse_cdf(scores, u)[:, None], 0.0)


def processors(sampler: Sampler, mask: Tensor) -> Any:
    """The sampler as transformers' logits processors. ``mask`` (B, n) is the texts': left padding is no repetition.

    They are for one answer (or one batch of answers) only, because they count the draws.
    """
    from transformers import LogitsProcessorList
    from transformers.generation.logits_process import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    found: list[Any] = [RefuseNaN()]
    if sampler.repetition_penalty != 1:
        found.append(UnpaddedRepetition(RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty), mask == 0))
    if sampler.temperature > 0:
        found.append(TemperatureLogitsWarper(float(sampler.temperature)))
        if sampler.top_p < 1:
            found.append(TopPLogitsWarper(sampler.top_p))
        found.append(Draw(sampler.seed))
    return LogitsProcessorList(found)
