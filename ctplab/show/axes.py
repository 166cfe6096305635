"""The ground that figures are drawn on: axes without any global state, error bars, and saving."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctplab.disk import whole
from ctplab.errors import InputError
from ctplab.measure.stats import Interval

FORMATS = ("png", "pdf", "svg")


def new_axes(width: float = 6.4, height: float = 4.0) -> tuple[Any, Any]:
    """A matplotlib figure of this size in inches, and its axes."""
    figure, panels = new_panels(1, 1, width, height)
    return figure, panels[0][0]


def new_panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure and its (rows, columns) axes, each of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure, panels


def plain_log(axis: Any) -> None:
    """Give a log axis ordinary numbers, even if it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high <= 30 * low else (1, 2, 5) if high <= 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=50))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def whole_numbers(axis: Any) -> None:
    """Let the marks of an axis of steps or rows stand at whole numbers only, however short it is."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def whiskers(found: Sequence[Interval], scale: float = 1) -> list[list[float]]:
    """Lengths of the error bars below and above the values: what matplotlib takes as ``yerr``."""
    below = [scale * max(0, share.value - share.low) for share in found]
    return [below, [scale * max(0, share.high - share.value) for share in found]]


def check_picture(path: Path) -> None:
    """Raise InputError if ``path`` does not end as a picture that can be written, before the work that it shows."""
    if path.suffix[1:].lower() not in FORMATS:
        raise InputError(f"{path} is no picture that can be written: end it in .png, .pdf or .svg")


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the ending of ``path``. Raises InputError for any other ending."""
    check_picture(path)
    with whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
