"""Perplexity of an arm, on the same target tokens for every arm.

Targets are tokens 1 .. T-1 of each window; the first is no target, whatever stands in front; prefix rows are never
targets and never in the divisor. (The paper's released evaluator divides by k more positions than it scores, so
its prompted perplexities are the true ones to the power (L-1)/(L-1+k): ``Score.ppl_as_published``.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab import parallel
from ctplab.errors import InputError
from ctplab.models.anatomy import check_context, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import logits_after
from ctplab.text.corpora import Split


@dataclass(frozen=True)
class Score:
    """Sums, never means: a wrong denominator cannot be written."""

    nll: float
    """Summed negative log likelihood, nats."""
    n_tokens: int
    """Number of targets."""

    @property
    def ppl(self) -> float:
        """exp(nll / n_tokens)."""
        return math.exp(self.nll / self.n_tokens)

    def ppl_as_published(self, k: int, seq_len: int) -> float:
        """What the paper's evaluator would print for k prompt tokens: comparable with its tables only."""
        return self.ppl ** ((seq_len - 1) / (seq_len - 1 + k))

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nll + other.nll, self.n_tokens + other.n_tokens)

    def __str__(self) -> str:
        return f"ppl {self.ppl:.2f} ({self.n_tokens} tokens)"


@torch.no_grad()
def window_nll(arm: Arm, windows: Tensor, *, batch: int = 16, progress: Progress = silent) -> Tensor:
    """Summed NLL of every window: ``windows`` (N, T) -> (N,) float64. The prefix is computed once.

    Several processes share the batches, each of which gives the same bits wherever it is computed.
    """
    check_context(arm.model, arm.prefix.k, windows.shape[1])
    kv = compile_prefix(arm.model, arm.prefix)
    device = embeddings(arm.model).device
    sums = torch.zeros(len(windows), dtype=torch.float64, device=device)
    mine = parallel.share(torch.arange(len(windows)).split(batch))
    for numbers in progress(mine, total=len(mine), label=f"score {arm.name}"):
        ids = windows[numbers].to(device)
        logits = logits_after(arm.model, kv, ids)
        for number, row, target in zip(numbers, logits, ids, strict=True):  # one by one: no fp32 copy of all logits
            sums[number] = F.cross_entropy(row[:-1].float(), target[1:].to(row.device), reduction="sum")
    parallel.add_up([sums])  # every other process has a zero there
    if not torch.isfinite(sums).all():
        raise InputError(f"the {arm.name} arm gives NaN or infinite losses; try dtype='float32'")
    return sums.cpu()


def perplexity(
    arm: Arm, text: Split | Tensor, *, batch: int = 16, limit: int | None = None, progress: Progress = silent
) -> Score:
    """Score an arm on a split, or on windows (N, T); ``limit`` takes the first windows only."""
    windows = (text.windows if isinstance(text, Split) else text)[:limit]
    sums = window_nll(arm, windows, batch=batch, progress=progress)
    return Score(float(sums.sum()), windows.shape[0] * (windows.shape[1] - 1))
