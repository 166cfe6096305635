"""The stages of ``real.py`` about codes: how much more they win at the same bytes than scales and norms alone.

Beside each stands the full model under the same change, weight by weight: what the tuned model has more than the
compressed one is added to it. If it got better by that, the text would have been learned, and not the loss mended.
"""

import copy
from collections.abc import Sequence

import torch
from real_arms import TUNED, compressed_scores, full_scores, level, say_closed, show_arms, tuned_scores
from real_bench import Bench, Found

import ctplab as ctp
from ctplab.learning.tuned import RATE
from ctplab.models import Model
from ctplab.prompts.prefix import none

CODES, LOW_RANK = (*TUNED, "codes"), (*TUNED, "low-rank")


def codes(bench: Bench, name: str) -> None:
    """Scales, norms and codes of a level at --lr (or the default of ``ctplab tune``) and at --also.

    Low-rank updates in place of the codes are learned last. All stand beside the arms of the level's own stage that are
    there.
    """
    stage, record, folder = f"{name}-codes", bench.record, level(bench, name)
    found: dict[str, Found] = {"full": full_scores(bench), "compressed": compressed_scores(bench, name, folder)}
    alone = record.found(f"{name}-arms", "scales+norms")
    found |= {"scales+norms": alone} if alone else {}

    def show(arm: str) -> None:
        say_closed(bench, stage, arm, found)
        show_arms(bench, f"{name} with codes", found)

    rate = bench.options.lr or RATE
    kinds = [(CODES, lr) for lr in dict.fromkeys([rate, *bench.options.also])]
    for what, lr in [*kinds, (LOW_RANK, rate)]:
        arm, at = f"{'+'.join(what)}, rate {lr:g}", f"{name}-{what[-1]}"
        found[arm] = record.piece(
            stage, arm, lambda lr=lr, what=what, at=at: tuned_scores(bench, at, folder, what, 1.0, lr)
        )
        show(arm)

        def on_full(lr: float = lr, what: Sequence[str] = what, at: str = at) -> Found:
            tuned = bench.tuned(at, folder, what, bench.spec(lr=lr))
            model = shifted(bench.models(bench.base)[0], bench.models(folder)[0], bench.tuned_arm("tuned", tuned).model)
            return bench.scores(ctp.Arm("full", model, none(model)))

        found[f"full+{arm}"] = record.piece(stage, f"full+{arm}", on_full)
        show(f"full+{arm}")


@torch.no_grad()
def shifted(model: Model, before: Model, after: Model) -> Model:
    """A copy of ``model``, with what ``after`` has more than ``before`` added to each of its parameters."""
    other = copy.deepcopy(model)
    for p, a, b in zip(other.parameters(), after.parameters(), before.parameters(), strict=True):
        p.add_(a - b)
    return other
