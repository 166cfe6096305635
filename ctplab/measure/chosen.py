"""Several prompts, one chosen an input: the prompt with the least loss on the input's own first tokens is taken.

Prompts that were learned on different texts suit different inputs. arXiv 2310.00867 chooses by how much attention the
input gives to each prompt. Here each prompt says how well it predicts the first ``look`` tokens of the input, which is
what it is there for, and it costs one short pass a prompt.

These first tokens are no targets, for any arm: what chose a prompt must not count in its favour. So every number here
is over the targets from ``look`` on, and so must be that of every arm beside (:func:`behind`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.perplexity import window_scores, windows_of
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.scores import WindowScores
from ctplab.text.corpora import Split


@dataclass(frozen=True)
class Chosen:
    """What choosing a prompt for every window gives; all scores are over the same targets."""

    picks: Tensor
    """(N,) int64: the number of each window's prompt."""
    scores: WindowScores
    """Behind the chosen prompts."""
    best: WindowScores
    """Behind the prompts with the least loss on the very targets: no way to choose can do better."""
    alone: dict[str, WindowScores]
    """Behind each prompt alone, by the name of its arm."""

    @property
    def counts(self) -> dict[str, int]:
        """How many windows chose each prompt."""
        return {name: int((self.picks == i).sum()) for i, name in enumerate(self.alone)}


def behind(text: Split, look: int) -> Split:
    """The same windows without targets among the first ``look`` tokens. Raises InputError if none would be left."""
    if not 2 <= look < text.seq_len:
        most = text.seq_len - 1
        raise InputError(f"look= takes numbers from 2 to {most}, not {look}: a window has {most + 1} tokens")
    late = torch.arange(len(text.stream)) % text.seq_len >= look
    return replace(text, mask=late if text.mask is None else late & text.mask)


def choose(arms: Sequence[Arm], ids: Tensor) -> tuple[int, list[float]]:
    """Return the number of the arm that predicts the first tokens ``ids`` (n,) of an input best, and every arm's NLL.

    Raises InputError for fewer than two tokens: the first is no target.
    """
    if ids.ndim != 1 or len(ids) < 2:
        raise InputError("choosing a prompt needs at least two tokens of the input")
    losses = [float(window_scores(arm, ids[None]).nll) for arm in arms]
    return min(range(len(losses)), key=losses.__getitem__), losses


def milliseconds(arms: Sequence[Arm], window: Tensor, look: int, repeats: int = 9) -> dict[str, float]:
    """Median wall time of a ``choice`` by the first ``look`` tokens of ``window`` (T,), and of reading it all once."""

    def median(run: Callable[[], Any]) -> float:
        taken = []
        for _ in range(repeats):
            since = time.perf_counter()
            run()  # its result is read on the host, so a card is waited for
            taken.append(1000 * (time.perf_counter() - since))
        return sorted(taken)[repeats // 2]

    return {
        "choice": median(lambda: choose(arms, window[:look])),
        "window": median(lambda: window_scores(arms[0], window[None])),
    }


def chosen(
    arms: Sequence[Arm],
    text: Split,
    *,
    look: int = 16,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> Chosen:
    """Choose an arm for each of the first ``limit`` windows by its first ``look`` tokens, and score what follows.

    All tokens seen count for the choice, also those that are no targets of the text (a user's question). ``keep``
    stores every arm's scores. Raises InputError for fewer than two arms, or two of one name.
    """
    names = [arm.name for arm in arms]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError("to choose needs at least two prompts, each with a name of its own")
    rest, heads = behind(text, look), windows_of(text, limit)[:, :look]
    how: dict[str, Any] = {"batch": batch, "keep": keep, "progress": progress}
    seen = [window_scores(arm, heads, name=f"first-{look}--{arm.name}", **how).nll for arm in arms]
    scores = [window_scores(arm, rest, limit=limit, name=f"behind-{look}--{arm.name}", **how) for arm in arms]
    losses = torch.stack([each.nll for each in scores])  # (arms, N)
    picks, best = torch.stack(seen).argmin(0), losses.min(0).values
    taken = losses.gather(0, picks[None])[0]
    targets = scores[0].n_tokens
    return Chosen(
        picks, WindowScores(taken, targets), WindowScores(best, targets), dict(zip(names, scores, strict=True))
    )
