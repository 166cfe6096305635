"""Figures of learning: the curve, and what the prompt saves token by token. Data in, figure out."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.show.axes import new_axes, whole_numbers
from ctplab.show.colours import GREY, colour, distinct


def draw_curve(records: Sequence[dict[str, Any]]) -> Any:
    """Training loss (left) and validation NLL (right) against the step.

    ``records``: {"step", "loss", "validation"}, as a prompt's file keeps them; validation is None between two looks.
    """
    figure, axes = new_axes()
    axes.plot([r["step"] + 1 for r in records], [r["loss"] for r in records], color=GREY, lw=0.8, label="training")
    measured = [r for r in records if r["validation"] is not None]
    right = axes.twinx()
    right.spines[["top"]].set_visible(False)
    steps, values = [r["step"] + 1 for r in measured], [r["validation"] for r in measured]
    right.plot(steps, values, color=colour("soft"), marker="o", ms=3, label="validation NLL")
    whole_numbers(axes.xaxis)
    axes.set(xlabel="step", ylabel="training objective (nats a token)", title="Learning the soft prompt")
    right.set_ylabel("validation NLL (nats a token)", color=colour("soft"))
    return figure


def draw_curves(runs: Mapping[str, Sequence[dict[str, Any]]]) -> Any:
    """Several runs on one pair of axes: validation NLL (thick, with its looks marked), training objective (thin).

    ``runs``: an arm's name -> its records as in :func:`draw_curve`.
    """
    figure, axes = new_axes()
    colours = distinct(runs)
    for arm, records in runs.items():
        axes.plot([r["step"] + 1 for r in records], [r["loss"] for r in records], color=colours[arm], lw=0.7, alpha=0.6)
        looks = [r for r in records if r["validation"] is not None]
        steps, values = [r["step"] + 1 for r in looks], [r["validation"] for r in looks]
        axes.plot(steps, values, color=colours[arm], marker="o", ms=4, lw=1.8, label=f"{arm}, validation")
    whole_numbers(axes.xaxis)
    axes.set(xlabel="step", ylabel="nats a token", title="Learning (thin: the training objective)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_saved(lost: Sequence[float], saved: Sequence[float], title: str) -> Any:
    """Token by token: what compression lost (grey), and what of it a prompt saved (green; below 0 it cost more)."""
    figure, axes = new_axes(8.4, 3.6)
    places = range(1, len(lost) + 1)
    axes.bar(places, lost, width=1.0, color=GREY, alpha=0.35, label="lost by compression")
    axes.bar(places, saved, width=0.6, color=colour("soft"), label="saved by the prompt")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="token of the text", ylabel="nats")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure
