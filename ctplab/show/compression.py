"""Figures of compression: what a level costs, and what becomes of weights. Data in, figure out."""

from typing import Any

from ctplab.show.axes import new_axes, new_panels, plain_log
from ctplab.show.colours import OLIVE, PURPLE, colour

MARKERS = {"quantised": "o", "pruned": "s", "joint": "D"}


def _kind(tag: str) -> str:
    """What a level's tag says was done: ``w4`` quantised, ``s50`` pruned, ``w4-s50`` both."""
    return "joint" if "w" in tag and "s" in tag else "quantised" if tag.startswith("w") else "pruned"


def draw_levels(levels: dict[str, dict], full: dict[str, Any], corpus: str) -> Any:
    """Perplexity (log) against the model's true bytes, one point a compression level.

    ``levels``: tag -> {"bytes": n, "ppl": {corpus: x}}; ``full`` is one such entry.
    """
    figure, axes = new_axes()
    best = f"full, {full['bytes'] / 1e6:.1f} MB"
    axes.axhline(full["ppl"][corpus], color=colour("full"), ls="--", lw=1, label=best)
    named: set[str] = set()
    for tag, level in levels.items():
        kind = _kind(tag)
        x, y = level["bytes"] / 1e6, level["ppl"][corpus]
        label = None if kind in named else kind  # one entry a kind in the legend
        axes.scatter(x, y, marker=MARKERS[kind], color=colour("compressed"), label=label)
        named.add(kind)
        below = -9 if kind == "quantised" else 2  # 3 bits and 50% + 4 bits lie close together
        axes.annotate(tag, (x, y), textcoords="offset points", xytext=(7, below), fontsize=9)
    axes.set(yscale="log", xlabel="model on disk, MB (true bytes)", ylabel=f"perplexity on {corpus} (log)")
    plain_log(axes.yaxis)
    axes.margins(x=0.1, y=0.12)
    sizes = [level["bytes"] / 1e6 for level in levels.values()]
    if max(sizes) < 1.05 * min(sizes):  # an axis of their differences alone would show nothing
        axes.set_xlim(0, 1.3 * max(sizes))
    axes.set_title("What compression costs")
    axes.legend(frameon=False)
    return figure


def draw_weights(matrices: dict[str, Any], title: str = "") -> Any:
    """Matrices (out, in) side by side, each on its own scale around zero: weights, codes, errors."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list(
        "signed", [OLIVE, "#FFFFFF", PURPLE]
    )  # green and red mean help and harm
    figure, panels = new_panels(1, len(matrices), 3.2, 3.2)
    for axes, (name, matrix) in zip(panels[0], matrices.items(), strict=True):
        most = float(abs(matrix).max())
        axes.imshow(matrix, cmap=colours, vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
        axes.grid(visible=False)
        axes.spines[["top", "right"]].set_visible(True)
        axes.set(title=name, xticks=[], yticks=[], xlabel="inputs", ylabel="outputs")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
