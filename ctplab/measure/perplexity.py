"""Perplexity of an arm, on the same target tokens for every arm.

Targets are tokens 1 .. T-1 of each window, or those of them that a split's mask names (``scores.predicted``). The first
is no target, whatever stands in front; prefix rows are never targets and never in the divisor. The paper's released
evaluator divides by k more positions than it scores. So its prompted perplexities are the true ones to the power
(L-1)/(L-1+k): ``Score.ppl_as_published``.

Every number takes the same path: :func:`window_scores` sums the NLL of an arm by window, and the sums give a score, or
a change or recovery with its interval (``stats``).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab import parallel
from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.models.anatomy import check_context, check_ids, embeddings
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled
from ctplab.prompts.head import logits_after
from ctplab.scores import Score, WindowScores, count_targets, predicted
from ctplab.text.corpora import Split


def windows_of(text: Split | Tensor, limit: int | None = None) -> Tensor:
    """The first ``limit`` windows (N, T) of a split or of windows. Raises InputError if there are none."""
    windows = (text.windows if isinstance(text, Split) else text)[:limit]
    if len(windows) == 0:
        raise InputError("there are no windows to score")
    return windows


def masks_of(text: Split | Tensor, limit: int | None = None) -> Tensor | None:
    """(N, T) bool: the masks of these windows; None if all their tokens may be targets."""
    masks = text.window_masks if isinstance(text, Split) else None
    return None if masks is None else masks[:limit]


def windows_key(windows: Tensor, masks: Tensor | None) -> dict[str, Any]:
    """What a result on these windows (N, T) with their masks is kept under."""
    key: dict[str, Any] = {"windows": tensor_fingerprint(windows), "shape": list(windows.shape)}
    return key if masks is None else key | {"masks": tensor_fingerprint(masks)}


def window_scores(
    arm: Arm,
    text: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    name: str = "",
    progress: Progress = silent,
) -> WindowScores:
    """Score an arm window by window on a split, or on windows (N, T); ``limit`` takes only the first windows.

    ``keep`` stores the result under ``name`` for this arm and these windows. Several processes share the batches; a
    batch gives the same bits in every process. Raises InputError if a loss is not finite or the context is too short.
    """
    windows, masks = windows_of(text, limit), masks_of(text, limit)
    key = {"arm": arm.fingerprint, **windows_key(windows, masks)}

    def compute() -> dict[str, Any]:
        nll = _summed_nll(arm, windows, masks, batch, progress)
        return WindowScores(nll, count_targets(windows, masks)).to_json()

    return WindowScores.from_json(keep(name, key, compute))


@torch.no_grad()
def _summed_nll(arm: Arm, windows: Tensor, masks: Tensor | None, batch: int, progress: Progress) -> Tensor:
    """Summed NLL of every window's targets: ``windows``, ``masks`` (N, T) -> (N,) float64."""
    check_context(arm.model, arm.prefix.k, windows.shape[1])
    check_ids(arm.model, windows)
    kv = compiled(arm)
    device = embeddings(arm.model).device
    sums = torch.zeros(len(windows), dtype=torch.float64, device=device)
    mine = parallel.share(torch.arange(len(windows)).split(batch))
    for numbers in progress(mine, total=len(mine), label=f"score {arm.name}"):
        ids = windows[numbers].to(device)
        logits = logits_after(arm.model, kv, ids)
        for i, number in enumerate(numbers):  # one by one: no fp32 copy of all logits
            mask = None if masks is None else masks[number][None]
            before, targets = predicted(logits[i : i + 1], ids[i : i + 1], mask)
            sums[number] = F.cross_entropy(before.float(), targets, reduction="sum")
    parallel.add_up([sums])  # every other process has a zero there
    if not torch.isfinite(sums).all():
        raise InputError(f"the {arm.name} arm gives NaN or infinite losses; try dtype='float32'")
    return sums.cpu()


def perplexity(
    arm: Arm, text: Split | Tensor, *, batch: int = 16, limit: int | None = None, progress: Progress = silent
) -> Score:
    """Score an arm on a split, or on windows (N, T); ``limit`` takes only the first windows."""
    return window_scores(arm, text, batch=batch, limit=limit, progress=progress).score
