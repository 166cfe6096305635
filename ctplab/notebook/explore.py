"""What the notebooks let you play with: each function hands a figure and its controls to ``widgets.Explorer``.

Controls start at values whose figure says something by itself, for that is the picture that a code host shows.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctplab.compression import obs
from ctplab.inspect.nearest import METRICS, inspect_prompt, vocabulary
from ctplab.inspect.similarity import binned, nearness
from ctplab.measure.lens import changes, lens
from ctplab.measure.stats import change
from ctplab.models import Model, Tokenizer
from ctplab.notebook.widgets import Explorer
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import AnyPrefix, Prefix
from ctplab.runs.study import Study
from ctplab.show.compression import draw_weights
from ctplab.show.learning import draw_saved
from ctplab.show.nearness import draw_nearness
from ctplab.show.shares import draw_shares
from ctplab.specs import CompressionSpec
from ctplab.text.corpora import Split

CORNER = slice(0, 48)
UNCOMPRESSED = 16  # bits


def layer(W: Tensor, H: Tensor) -> Explorer:
    """One layer W (out, in) compressed against H (in, in): bits and sparsity."""
    whole = obs.output_loss(W, torch.zeros_like(W), H)

    def draw(bits: int = 3, sparsity: float = 0.5) -> tuple[Any, str]:
        spec = CompressionSpec(bits=None if bits == UNCOMPRESSED else bits, sparsity=sparsity)
        W_hat = obs.solve(W, H, spec).W_hat
        lost = obs.output_loss(W, W_hat, H) / whole
        parts = {"W": W, "compressed": W_hat, "error": W_hat - W}
        title = f"{spec.tag}: {lost:.2%} of the output lost, {float((W_hat == 0).float().mean()):.0%} zeros"
        return draw_weights({name: part[CORNER, CORNER].numpy() for name, part in parts.items()}, title), ""

    sparsities = [round(0.05 * i, 2) for i in range(19)]
    return Explorer(draw, bits=(2, 3, 4, 8, UNCOMPRESSED), sparsity=sparsities)


def first_rows(full: Model, compressed: Model, tokenizer: Tokenizer, soft: Prefix, split: Split) -> Explorer:
    """Only the first k of the learned rows before one text of ``split``: what they save, token by token."""
    texts = [tokenizer.decode(window) for window in split.windows[:8]]

    def draw(k: int = soft.k, text: int = 0) -> tuple[Any, str]:
        some = Prefix("soft", soft.rows[:k])
        arms = [Arm("full", full, prefix.none(full)), Arm("compressed", compressed, prefix.none(compressed))]
        seen = lens([*arms, Arm("soft", compressed, some)], tokenizer, texts[text], top=1)
        helped = changes(seen, "compressed", "soft")
        lost = {change.position: change.nats for change in changes(seen, "compressed", "full")}
        saved = {change.position: change.nats for change in helped}
        n = len(saved)
        title = f"{k} of {soft.k} rows save {sum(saved.values()) / n:.3f} of {sum(lost.values()) / n:.3f} nats a token"
        figure = draw_saved([lost[t] for t in sorted(lost)], [saved[t] for t in sorted(saved)], title)
        ends = [("most", helped[:6]), ("least", helped[:-7:-1])]
        said = [f"{name:5}  " + "  ".join(f"{c.token!r} {c.nats:+.1f}" for c in found) for name, found in ends]
        return figure, "\n".join(["saved", *said, "", texts[text]])

    return Explorer(draw, k=range(soft.k + 1), text=range(len(texts)))


def carried(
    study: Study, models: Mapping[str, Model], prompts: Mapping[str, AnyPrefix], splits: Sequence[Split], windows: int
) -> Explorer:
    """A prompt in front of a model, both by name: the change of NLL on every text. What was measured is kept."""

    def draw(prompt: str = next(iter(prompts)), level: str = list(models)[-1]) -> tuple[Any, str]:
        model = models[level]
        arms = Arm(prompt, model, prompts[prompt]), Arm("compressed", model, prefix.none(model))
        found = {}
        for split in splits:
            with_it, without = (study.scores(level, arm, split, windows) for arm in arms)
            found[split.name] = change(with_it, without)
        figure = draw_shares(found, f"{prompt} in front of {level}: change of NLL, nats a token (below 0 it helps)")
        return figure, "\n".join(f"{name:12} {share}" for name, share in found.items())

    return Explorer(draw, prompt=list(prompts), level=list(models))


def nearest(model: Model, tokenizer: Tokenizer, soft: Prefix, initial: Prefix) -> Explorer:
    """The histogram of the learned rows, or of one of them, against its nulls; and that row's nearest tokens."""
    table = vocabulary(model)
    every = "all"

    @cache
    def measured(top: int, metric: str, centred: bool) -> dict[str, Tensor]:
        return nearness(table, soft, initial, top=top, metric=metric, centre=centred)

    @cache
    def named(metric: str, centred: bool) -> list:
        return inspect_prompt(model, tokenizer, soft, initial, top=10, metric=metric, centre=centred)

    def draw(
        row: str | int = every, top: int = 100, metric: str = METRICS[0], centred: bool = False
    ) -> tuple[Any, str]:
        sets = dict(measured(top, metric, centred))
        if row != every:
            sets |= {name: sets[name][int(row)][None] for name in ("soft", "init")}
        values = torch.cat([found.flatten() for found in sets.values()])
        low, high = values.min().item(), values.max().item()
        margin = 1e-3 * (abs(low) + abs(high)) + 1e-6  # an interval even if all are equal
        which = "all rows" if row == every else f"row {row}"
        title = f"{which}: {metric}{', centred' if centred else ''}, to the {top} nearest tokens"
        figure = draw_nearness(binned(sets, low - margin, high + margin, 40), metric, title)
        shown = named(metric, centred)[:8] if row == every else [named(metric, centred)[int(row)]]
        few = 5 if row == every else 10
        lines = [
            f"row {r.row:3}  " + "  ".join(f"{token!r} {value:.2f}" for token, value in r.nearest[:few]) for r in shown
        ]
        return figure, "\n".join(lines)

    return Explorer(
        draw, row=[every, *range(soft.k)], top=(1, 5, 20, 50, 100, 200), metric=METRICS, centred=(False, True)
    )
