"""Recovery: the share of compression's NLL increase that a prompt undoes, with controls for other explanations.

    recovery = (NLL_compressed - NLL_arm) / (NLL_compressed - NLL_full)         nats over the same targets

0 is the compressed model, 1 the full one. The controls ``bos`` (the start token alone), ``random`` (k random vocabulary
rows), ``init`` (the untrained prompt) and ``text`` (k tokens of real text) show the effect of arbitrary rows in front.
``full+soft`` (the same prompt on the full model) and ``full+own`` (a prompt learned on the full model with the same
budget) show how much the full model gains too: that gain is adaptation to the text, not recovery. ``lora`` shows the
gain if as many steps change weights. ``runs/controls.py`` learns ``full+own`` and ``lora``.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.perplexity import window_scores
from ctplab.measure.stats import Interval
from ctplab.measure.stats import recovery as share_of_gap
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.scores import Score, WindowScores
from ctplab.text.corpora import Split


@dataclass(frozen=True)
class ArmRecovery:
    """One arm on one corpus."""

    nll: float
    n_tokens: int
    recovery: Interval
    """Share of the gap closed, with its paired bootstrap 95% interval over windows."""

    @property
    def score(self) -> Score:
        return Score(self.nll, self.n_tokens)

    @property
    def ppl(self) -> float:
        return self.score.ppl


Recovery = dict[str, ArmRecovery]
"""Arm name -> its result; ``full`` and ``compressed`` are always present."""


def recover(
    arms: Sequence[Arm],
    text: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    seed: int = 0,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> Recovery:
    """Measure NLL, perplexity and recovery of every arm on the same windows. Each arm is kept as soon as it is scored.

    ``arms``: those of :func:`ctplab.prompts.arms.arms` with its controls, and any others (an adapter such as LoRA is an
    arm with its own model and no prefix). Raises InputError if ``full`` or ``compressed`` is missing.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise InputError("recovery needs every arm to have a name of its own")
    return from_scores(arm_scores(arms, text, batch=batch, limit=limit, keep=keep, progress=progress), seed=seed)


def arm_scores(
    arms: Sequence[Arm],
    text: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> dict[str, WindowScores]:
    """Score every arm on the first ``limit`` windows. Each result is kept as soon as it is known."""
    label = text.name if isinstance(text, Split) else "windows"
    settings: dict[str, Any] = {"batch": batch, "limit": limit, "keep": keep, "progress": progress}
    return {arm.name: window_scores(arm, text, name=f"{label}--{arm.name}", **settings) for arm in arms}


def from_scores(scores: dict[str, WindowScores], *, seed: int = 0) -> Recovery:
    """Compute the same from the scores of every arm. Raises InputError if ``full`` or ``compressed`` is missing."""
    if not {"full", "compressed"} <= set(scores):
        raise InputError("recovery needs the arms 'full' and 'compressed'")
    full, compressed = scores["full"], scores["compressed"]
    return {
        name: ArmRecovery(own.score.nll, own.score.n_tokens, share_of_gap(full, compressed, own, seed=seed))
        for name, own in scores.items()
    }


@dataclass(frozen=True)
class OverSeeds:
    """Recovery of one arm over several prompts that differ only in their seed."""

    mean: float
    sd: float
    """Sample standard deviation: the effect of the learning seed, which a bootstrap over windows does not show."""
    n: int


def over_seeds(runs: Sequence[Recovery]) -> dict[str, OverSeeds]:
    """Mean and spread of recovery for each arm that all runs contain. Raises InputError for fewer than two runs."""
    if len(runs) < 2:
        raise InputError("a spread over seeds needs at least two runs")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: [run[name].recovery.value for run in runs] for name in shared}
    return {name: OverSeeds(statistics.mean(v), statistics.stdev(v), len(v)) for name, v in values.items()}


def in_words(found: Recovery) -> list[str]:
    """State the results in sentences: the gap, the share that the prompt closes, and what the controls explain."""
    gap = _nats(found, "compressed") - _nats(found, "full")
    if gap <= 0:
        return ["Compression did not raise the NLL here: there is nothing to recover."]
    lines = [f"Compression costs {gap:.3f} nats a token ({_ppl(found, 'full')} to {_ppl(found, 'compressed')})."]
    if "soft" in found:
        share = found["soft"].recovery
        verb = "closes" if share.low > 0 else "widens" if share.high < 0 else "neither clearly closes nor widens"
        lines.append(f"The prompt {verb} the gap: {share.percent} of it, {_ppl(found, 'soft')}.")
    rows = [name for name in ("bos", "random", "init", "text", "hard") if name in found]
    if rows:
        best = max(rows, key=lambda name: found[name].recovery.value)
        share = found[best].recovery
        lines.append(f"Of the prompts that were not learned, {best} does best: {share.percent} of the gap.")
    for name, what in (("full+soft", "the same prompt"), ("full+own", "a prompt of its own with the same budget")):
        if name in found:
            gain = _nats(found, "full") - _nats(found, name)
            lines.append(
                f"The full model {'gains' if gain > 0 else 'loses'} {abs(gain):.3f} nats a token from {what} "
                f"({_ppl(found, name)})" + ("; that much is adaptation to this text." if gain > 0 else ".")
            )
    if {"soft", "full+own"} <= set(found):
        lines += _recovery_and_adaptation(found)
    if "lora" in found:
        share = found["lora"].recovery
        lines.append(
            f"LoRA, which changes weights and not the input, closes {share.percent} in as many steps, "
            f"{_ppl(found, 'lora')}."
        )
    return lines


def _recovery_and_adaptation(found: Recovery) -> list[str]:
    """Split the prompt's gain in two: the full model's gain from the same treatment, and the rest."""
    full, small, soft, own = (_nats(found, name) for name in ("full", "compressed", "soft", "full+own"))
    gain, adaptation, left = small - soft, max(0.0, full - own), (soft - own) / (small - full)
    lines = []
    if gain > 0:
        rest = gain - adaptation
        lines.append(
            f"Of the {gain:.3f} nats a token that the prompt gains the compressed model, {min(gain, adaptation):.3f} "
            "are adaptation, which the full model enjoys as well when it is treated alike; "
            + (f"the other {rest:.3f} are recovery." if rest > 0 else "there is no recovery beyond that.")
        )
    remains = f"With equal treatment of both models {100 * left:.0f}% of the gap remains: "
    return [*lines, f"{remains}{_ppl(found, 'soft')} against {_ppl(found, 'full+own')}."]


def _nats(found: Recovery, name: str) -> float:
    return found[name].score.mean


def _ppl(found: Recovery, name: str) -> str:
    return f"perplexity {found[name].ppl:.2f}"
