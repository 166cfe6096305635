"""Figures of how near rows are to the vocabulary, beside what would be as near by chance. Data in, figure out."""

from itertools import pairwise
from typing import Any

from ctplab.inspect.similarity import PAPER_LARGEST
from ctplab.show.axes import new_axes
from ctplab.show.colours import ROW_NAMES, ROWS


def draw_nearness(data: dict[str, Any], axis: str = "cosine", title: str = "", *, ceiling: bool = False) -> Any:
    """Shares of each set of rows in every bin, so that sets of different sizes can be compared (Figure 8).

    ``data``: {"edges", "counts", "mean"} from ``inspect.similarity``; ``ceiling`` marks the paper's largest cosine.
    """
    figure, axes = new_axes()
    edges, sets = data["edges"], data["counts"]
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    for name, counts in sets.items():
        shares = [count / max(1, sum(counts)) for count in counts]
        axes.fill_between(centres, shares, step="mid", color=ROWS[name], alpha=0.15)
        label = f"{ROW_NAMES[name]}, mean {data['mean'][name]:.3g}"
        axes.step(centres, shares, where="mid", color=ROWS[name], label=label)
    if ceiling:
        axes.axvline(PAPER_LARGEST, color="black", lw=0.8, ls=":", label=f"{PAPER_LARGEST}: the paper's largest")
    used = [i for i in range(len(centres)) if any(counts[i] for counts in sets.values())] or [0]
    axes.set_xlim(edges[max(0, used[0] - 1)], edges[used[-1] + 1])
    axes.set(xlabel=axis, ylabel="share")
    axes.set_title(title or "Nearest tokens: the prompt against its nulls", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure
