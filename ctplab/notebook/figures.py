"""Figures that the notebooks' explorers redraw (``explore.py``). Data in, figure out; nothing is computed here."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ctplab.show.measured import GREY
from ctplab.show.plots import COLOURS, new_axes

NAMES = {"soft": "learned", "init": "untrained", "real": "real tokens", "random": "random Gaussian"}


def nearness(data: dict[str, Any], axis: str, title: str) -> Any:
    """Shares of each set in every bin (``data`` of ``similarity.binned``): sets of different sizes are comparable."""
    figure, axes = new_axes()
    centres = [(a + b) / 2 for a, b in pairwise(data["edges"])]
    for name, counts in data["counts"].items():
        shares = [count / max(1, sum(counts)) for count in counts]
        colour = "#000000" if name == "real" else COLOURS[name]
        axes.fill_between(centres, shares, step="mid", color=colour, alpha=0.15)
        label = f"{NAMES[name]}, mean {data['mean'][name]:.3g}"
        axes.step(centres, shares, where="mid", color=colour, label=label)
    axes.set(xlabel=axis, ylabel="share")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def saved_by_token(lost: Sequence[float], saved: Sequence[float], title: str) -> Any:
    """Token by token: what compression lost (grey), and what of it a prompt saved (green; below 0: cost)."""
    figure, axes = new_axes(8.4, 3.6)
    places = range(1, len(lost) + 1)
    axes.bar(places, lost, width=1.0, color=GREY, alpha=0.35, label="lost by compression")
    axes.bar(places, saved, width=0.6, color=COLOURS["soft"], label="saved by the prompt")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="token of the text", ylabel="nats")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def weights(matrices: dict[str, Any], title: str) -> Any:
    """``plots.images`` under one title."""
    from ctplab.show.plots import images

    figure = images(matrices)
    figure.suptitle(title, fontsize=11)
    return figure
