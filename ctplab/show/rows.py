"""Figures of what each row of a prompt is worth. Data in, figure out."""

from collections.abc import Sequence
from typing import Any

from ctplab.measure.attention_mass import AttentionMass
from ctplab.measure.worth import RowWorth
from ctplab.show.axes import new_panels, plain_log, whiskers, whole_numbers
from ctplab.show.colours import GREY, HELPS, HURTS

VERDICTS = {"helps": HELPS, "harms": HURTS, "cannot tell": GREY}


def draw_worth(found: Sequence[RowWorth], mass: AttentionMass | None = None, title: str = "") -> Any:
    """The worth of every row with its interval; below it, if known, the attention on it, layer by layer."""
    figure, panels = new_panels(1 if mass is None else 2, 1, 8.4, 3.0)
    axes = panels[0][0]
    for verdict, colour in VERDICTS.items():
        some = [row for row in found if row.verdict == verdict]
        if some:
            axes.errorbar(
                [row.row for row in some], [row.worth.value for row in some], whiskers([row.worth for row in some]),
                fmt="o", ms=3, lw=0.8, color=colour, label=f"{verdict} ({len(some)})",
            )  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    whole_numbers(axes.xaxis)
    axes.set(xlabel="row", ylabel="loss without it, nats a token")
    axes.set_title(title or "What each row is worth: rise of the loss without it, 95% intervals", fontsize=10)
    axes.margins(y=0.2)  # the legend stands above the points
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    if mass is not None:
        _draw_mass(figure, panels[1][0], mass)
        panels[1][0].sharex(axes)
    return figure


def _draw_mass(figure: Any, axes: Any, mass: AttentionMass) -> None:
    """A line a layer, a column a row; the scale is logarithmic, because a few rows get most of it."""
    from matplotlib.colors import LogNorm

    shares = (100 * mass.rows).clamp(min=1e-4).tolist()
    image = axes.imshow(shares, aspect="auto", cmap="cividis", norm=LogNorm(), interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="row", ylabel="layer")
    axes.set_yticks(range(len(shares)) if len(shares) <= 12 else range(0, len(shares), 5))
    axes.set_title(f"Attention of the text on each row, % (looking evenly: {100 * mass.even:.2f})", fontsize=10)
    plain_log(figure.colorbar(image, ax=axes).ax.yaxis)
