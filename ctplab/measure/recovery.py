"""Recovery told honestly: how much of what compression took a prompt gives back, beside everything that could pass
for it.

    recovery = (NLL_compressed - NLL_arm) / (NLL_compressed - NLL_full)         nats over the same targets

0 is the compressed model, 1 the full one. The controls: ``bos`` (the start token alone), ``random`` (k random
vocabulary rows), ``init`` (the untrained prompt) and ``text`` (k tokens of real text) show what any rows in front do;
``full+soft`` (the same prompt on the full model) and ``full+own`` (a prompt learned on the full model with the same
budget) show how much of the gain the full model enjoys as well: that is adaptation to the text, not recovery. ``lora``
is what as many steps buy in the weights. ``runs/controls.py`` learns the last two.
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
"""Arm name -> its result; ``full`` and ``compressed`` are always there."""


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
    """NLL, perplexity and recovery of every arm on the same windows; each arm is kept as soon as it is scored.

    ``arms`` from :func:`ctplab.prompts.arms.arms` with its controls; more may follow (an adapter such as LoRA is an arm
    with a model of its own and no prefix). Raises InputError without the arms ``full`` and ``compressed``.
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
    """Every arm's scores on the first ``limit`` windows, each kept as soon as it is known."""
    label = text.name if isinstance(text, Split) else "windows"
    settings: dict[str, Any] = {"batch": batch, "limit": limit, "keep": keep, "progress": progress}
    return {arm.name: window_scores(arm, text, name=f"{label}--{arm.name}", **settings) for arm in arms}


def from_scores(scores: dict[str, WindowScores], *, seed: int = 0) -> Recovery:
    """The same from the scores of every arm, however they were had.

    Raises InputError without the arms ``full`` and ``compressed``.
    """
    if not {"full", "compressed"} <= set(scores):
        raise InputError("recovery needs the arms 'full' and 'compressed'")
    full, compressed = scores["full"], scores["compressed"]
    return {
        name: ArmRecovery(own.score.nll, own.score.n_tokens, share_of_gap(full, compressed, own, seed=seed))
        for name, own in scores.items()
    }


@dataclass(frozen=True)
class OverSeeds:
    """Recovery of one arm over several prompts that differ in their seed only."""

    mean: float
    sd: float
    """Sample standard deviation; how much the seed of learning matters, which no bootstrap over windows shows."""
    n: int


def over_seeds(runs: Sequence[Recovery]) -> dict[str, OverSeeds]:
    """Mean and spread of recovery by arm, for the arms that all runs have."""
    if len(runs) < 2:
        raise InputError("a spread over seeds needs at least two runs")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: [run[name].recovery.value for run in runs] for name in shared}
    return {name: OverSeeds(statistics.mean(v), statistics.stdev(v), len(v)) for name, v in values.items()}


def in_words(found: Recovery) -> list[str]:
    """What the numbers say, a sentence each: the gap, what the prompt closes, what the controls leave of that."""
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
    """The prompt's gain in two parts: what the full model gains from the same treatment, and the rest."""
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
