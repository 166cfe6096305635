"""Figures of prompts on weights they never saw: against the distance, the number of copies, and steps. Data in."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.measure.pace import Pace
from ctplab.measure.stats import Interval
from ctplab.measure.transfer import TransferCell
from ctplab.show.axes import new_axes, whiskers, whole_numbers
from ctplab.show.colours import GREY, HELPS, HURTS, PURPLE

MARKS = ("o", "s", "^", "D", "v", "P")


def draw_distances(cells: Sequence[TransferCell], title: str) -> Any:
    """Share of each target's gap that a prompt closes, against what its weights' errors share with the source's.

    Cells without a recovery or a distance are left out: those without a prompt, and the refused.
    """
    figure, axes = new_axes(7.6, 4.6)
    sources = list(dict.fromkeys(cell.source for cell in cells))
    for cell in cells:
        if cell.recovery is None or cell.distance is None or cell.distance.alike is None:
            continue
        mark = MARKS[sources.index(cell.source) % len(MARKS)]
        at = cell.distance.alike, 100 * cell.recovery.value
        colour = HELPS if cell.recovery.low > 0 else HURTS if cell.recovery.high < 0 else GREY
        axes.errorbar(*at, whiskers([cell.recovery], 100), fmt=mark, ms=5, capsize=2, color=colour)
        axes.annotate(cell.target, at, xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="cosine of the two models' rounding errors (1: the same weights)")
    axes.set(ylabel="share of the gap closed, %", title=title)
    return figure


def draw_sources(curves: Mapping[str, Mapping[int, Interval]], title: str) -> Any:
    """Share of the gap against the number of copies that a prompt was learned through; a line a name."""
    figure, axes = new_axes()
    for (name, curve), colour, mark in zip(curves.items(), (GREY, HELPS, PURPLE, HURTS), MARKS, strict=False):
        values = [100 * share.value for share in curve.values()]
        spread = whiskers(list(curve.values()), 100)
        axes.errorbar(list(curve), values, spread, marker=mark, capsize=2, color=colour, label=name)
    axes.set_xticks(sorted({n for curve in curves.values() for n in curve}))
    axes.set(xlabel="copies learned through, in turn", ylabel="share of the gap closed, %", title=title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_pace(paces: Sequence[Pace]) -> Any:
    """Share of the gap on the validation windows against steps; a line a prompt."""
    figure, axes = new_axes()
    for pace, colour, mark in zip(paces, (HELPS, GREY, PURPLE, HURTS), MARKS, strict=False):
        steps, shares = zip(*pace.points, strict=True)
        axes.plot(steps, [100 * share for share in shares], marker=mark, ms=4, color=colour, label=pace.name)
    axes.axhline(0, color="black", lw=0.8)
    whole_numbers(axes.xaxis)
    axes.set(xlabel="steps", ylabel="share of the gap closed, %", title="Steps to a share of the gap, on validation")
    axes.legend(frameon=False, fontsize=8)
    return figure
