"""Figures of shares with their 95% intervals: recovery, right answers, changes. Data in, figure out."""

from collections.abc import Mapping
from typing import Any

from ctplab.measure.stats import Interval
from ctplab.show.axes import new_axes, whiskers
from ctplab.show.colours import colour, distinct


def draw_shares(found: Mapping[str, Interval], title: str) -> Any:
    """Intervals by name, as points with whiskers; an arm's name gives its colour."""
    figure, axes = new_axes()
    for i, (name, share) in enumerate(found.items()):
        axes.errorbar(i, share.value, whiskers([share]), fmt="o", capsize=3, color=colour(name))
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(found)), list(found), rotation=20 if len("".join(found)) > 40 else 0)
    axes.set(title=title)
    return figure


def draw_recovery(table: Mapping[str, Mapping[str, Interval]], learned_on: str) -> Any:
    """Share of the NLL gap closed, by corpus and arm."""
    figure, axes = new_axes(8.4, 4.2)
    arms = list(next(iter(table.values())))
    width, colours = 0.8 / len(arms), distinct(arms)
    for j, arm in enumerate(arms):
        shares = [table[corpus][arm] for corpus in table]
        x = [i + (j - (len(arms) - 1) / 2) * width for i in range(len(shares))]
        axes.bar(
            x, [s.value for s in shares], width, yerr=whiskers(shares), capsize=2, color=colours[arm], label=arm
        )  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    axes.axhline(1, color="black", lw=0.8, ls="--")
    lowest = min(share.low for shares in table.values() for share in shares.values())
    axes.set_ylim(max(-2, min(-0.6, lowest) - 0.1), 1.6)  # below -2 a bar is cut: how much worse tells no more
    labels = [f"{corpus}\n(learned here)" if corpus == learned_on else corpus for corpus in table]
    axes.set_xticks(range(len(table)), labels)
    axes.set(ylabel="share of the NLL gap closed (1 = full)", title="Recovery and its controls, 95% intervals")
    axes.legend(frameon=False, ncols=4, fontsize=8)
    return figure


def draw_questions(seen: Mapping[str, Interval], held_out: Mapping[str, Interval]) -> Any:
    """Exact match by arm: questions in a form that the model has seen (solid), and in a held-out form (pale)."""
    figure, axes = new_axes()
    for offset, found, alpha in ((-0.2, seen, 1.0), (0.2, held_out, 0.55)):
        for i, (arm, share) in enumerate(found.items()):
            axes.bar(
                i + offset, 100 * share.value, 0.38, yerr=whiskers([share], 100), capsize=2, color=colour(arm),
                alpha=alpha,
            )  # fmt: skip
    axes.set_xticks(range(len(seen)), list(seen), rotation=20)
    axes.set(ylabel="exact match, %", ylim=(0, 105), title="Questions: seen form (solid), held-out form (pale)")
    return figure
