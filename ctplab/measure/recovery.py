"""Recovery told honestly: how much of what compression took a prompt gives back, beside everything that could pass
for it.

    recovery = (NLL_compressed - NLL_arm) / (NLL_compressed - NLL_full)         nats over the same targets

0 is the compressed model, 1 the full one. The controls: ``bos`` (the start token alone), ``random`` (k random
vocabulary rows), ``init`` (the untrained prompt) and ``text`` (k tokens of real text) show what any rows in front do;
``full+soft`` (the same prompt on the full model) and ``full+own`` (a prompt learned on the full model with the same
budget) show how much of the gain the full model enjoys as well: that is adaptation to the text, not recovery. ``lora``
is what as many steps buy in the weights. ``ctplab/controls.py`` learns the last two.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.kept import kept_nll
from ctplab.measure.perplexity import Score
from ctplab.measure.stats import Interval
from ctplab.measure.stats import recovery as share_of_gap
from ctplab.models import Model, Tokenizer
from ctplab.progress import Progress, silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import AnyPrefix, Prefix
from ctplab.text.corpora import Split


@dataclass(frozen=True)
class ArmRecovery:
    """One arm on one corpus."""

    nll: float
    n_tokens: int
    recovery: Interval
    """Share of the gap closed, with its paired bootstrap 95% interval over windows."""

    @property
    def ppl(self) -> float:
        return Score(self.nll, self.n_tokens).ppl


Recovery = dict[str, ArmRecovery]
"""Arm name -> its result; ``full`` and ``compressed`` are always there."""


def comparison(
    full: Model,
    compressed: Model,
    tokenizer: Tokenizer,
    soft: AnyPrefix,
    *,
    initial: Prefix | None = None,
    hard: str = prefix.PAPER_HARD_PROMPT,
    text: Tensor | None = None,
    full_own: AnyPrefix | None = None,
    seed: int = 0,
) -> list[Arm]:
    """The arms that tell recovery from its look-alikes, for one learned prompt.

    ``initial``: the untrained prompt (arm ``init``); ``text``: token ids of real text, the first k are taken (arm
    ``text``); ``full_own``: a prompt learned on the full model with the same budget (arm ``full+own``). What is not
    given is left out; ``bos`` too where the tokenizer has no start token.
    """
    none = prefix.none(full)
    arms = [Arm("full", full, none), Arm("compressed", compressed, none)]
    arms.append(Arm("hard", compressed, prefix.hard(compressed, tokenizer, hard)))
    arms.append(Arm("soft", compressed, soft))
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        arms.append(Arm("bos", compressed, prefix.bos(compressed, tokenizer)))
    arms.append(Arm("random", compressed, prefix.random_rows(compressed, soft.k, seed + 1)))
    if initial is not None:
        arms.append(Arm("init", compressed, initial))
    if text is not None:
        if len(text) < soft.k:
            raise InputError(f"the text control needs {soft.k} tokens of text, not {len(text)}")
        arms.append(Arm("text", compressed, prefix.from_ids(compressed, text[: soft.k], "text")))
    arms.append(Arm("full+soft", full, soft))
    if full_own is not None:
        arms.append(Arm("full+own", full, full_own))
    return arms


def recover(
    arms: Sequence[Arm],
    windows: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    seed: int = 0,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> Recovery:
    """NLL, perplexity and recovery of every arm on the same windows; each arm is kept as soon as it is scored.

    ``arms`` from :func:`comparison`, with more behind them where wanted (an adapter such as LoRA is an arm with its
    own model and no prefix). Raises InputError without the arms ``full`` and ``compressed``.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise InputError("recovery needs every arm to have a name of its own")
    rows = (windows.windows if isinstance(windows, Split) else windows)[:limit]
    sums = arm_sums(arms, windows, batch=batch, limit=limit, keep=keep, progress=progress)
    return from_sums(sums, rows.shape[0] * (rows.shape[1] - 1), seed=seed)


def arm_sums(
    arms: Sequence[Arm],
    windows: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """(N,) summed NLL of every arm on the first ``limit`` windows, each kept as soon as it is known."""
    rows = (windows.windows if isinstance(windows, Split) else windows)[:limit]
    label = windows.name if isinstance(windows, Split) else "windows"
    return {arm.name: kept_nll(keep, f"{label}--{arm.name}", arm, rows, batch=batch, progress=progress) for arm in arms}


def from_sums(sums: dict[str, Tensor], n_tokens: int, *, seed: int = 0) -> Recovery:
    """The same from (N,) summed NLL of every arm, however they were had.

    Raises InputError without the arms ``full`` and ``compressed``.
    """
    if not {"full", "compressed"} <= set(sums):
        raise InputError("recovery needs the arms 'full' and 'compressed'")
    return {
        name: ArmRecovery(float(nll.sum()), n_tokens, share_of_gap(sums["full"], sums["compressed"], nll, seed=seed))
        for name, nll in sums.items()
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
    tokens = found["full"].n_tokens
    gap = (found["compressed"].nll - found["full"].nll) / tokens
    if gap <= 0:
        return ["Compression did not raise the NLL here: there is nothing to recover."]
    lines = [f"Compression costs {gap:.3f} nats a token ({_ppl(found, 'full')} to {_ppl(found, 'compressed')})."]
    if "soft" in found:
        share = found["soft"].recovery
        verb = "closes" if share.low > 0 else "widens" if share.high < 0 else "neither clearly closes nor widens"
        lines.append(f"The prompt {verb} the gap: {_percent(share)} of it, {_ppl(found, 'soft')}.")
    rows = [name for name in ("bos", "random", "init", "text", "hard") if name in found]
    if rows:
        best = max(rows, key=lambda name: found[name].recovery.value)
        share = found[best].recovery
        lines.append(f"Of the prompts that were not learned, {best} does best: {_percent(share)} of the gap.")
    for name, what in (("full+soft", "the same prompt"), ("full+own", "a prompt of its own with the same budget")):
        if name in found:
            gain = (found["full"].nll - found[name].nll) / tokens
            lines.append(
                f"The full model {'gains' if gain > 0 else 'loses'} {abs(gain):.3f} nats a token from {what} "
                f"({_ppl(found, name)})" + ("; that much is adaptation to this text." if gain > 0 else ".")
            )
    if {"soft", "full+own"} <= set(found):
        lines += _recovery_and_adaptation(found)
    if "lora" in found:
        share = found["lora"].recovery
        lines.append(
            f"LoRA, which changes weights and not the input, closes {_percent(share)} in as many steps, "
            f"{_ppl(found, 'lora')}."
        )
    return lines


def _recovery_and_adaptation(found: Recovery) -> list[str]:
    """The prompt's gain in two parts: what the full model gains from the same treatment, and the rest."""
    tokens = found["full"].n_tokens
    gain = (found["compressed"].nll - found["soft"].nll) / tokens
    adaptation = max(0.0, (found["full"].nll - found["full+own"].nll) / tokens)
    left = (found["soft"].nll - found["full+own"].nll) / (found["compressed"].nll - found["full"].nll)
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


def _ppl(found: Recovery, name: str) -> str:
    return f"perplexity {found[name].ppl:.2f}"


def _percent(share: Interval) -> str:
    return f"{100 * share.value:+.0f}% [{100 * share.low:+.0f}, {100 * share.high:+.0f}]"
