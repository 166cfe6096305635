"""How plotly figures look here: readable on light and dark, a fixed height (hidden tabs have none of their own).

Colours mean what they mean on paper (``ctplab.show.colours``).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

import ctplab as ctp
from ctplab.show.colours import GREY

NO_PROMPT = "No prompt yet.<br>Learn one in the tab Train,<br>or load one at the top of the page."
INSIDE = ((250, 240), (420, 260))  # pixels of plot areas that labels are laid out for: on a phone, and beside another
PICKED = "#e11d48"  # what a reader chose
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
GRID = "rgba(128, 140, 160, 0.25)"


def blank(height: int, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with named axes."""
    figure = go.Figure()
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        margin={"l": 60, "r": 16, "t": 44, "b": 50} | layout.pop("margin", {}),
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        hoverlabel={"font": {"size": 13}},
        **layout,
    )
    for axis, title in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        axis(title=title, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    return figure


def logarithmic(figure: go.Figure, values: Iterable[float]) -> None:
    """Make the y axis logarithmic, with few round numbers on it and none of the usual small ones between."""
    known = [value for value in values if value > 0]
    inside: list[float] = []
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):  # the finest that leaves room
        ticks = [digit * 10**power for power in range(-3, 7) for digit in digits]
        found = [tick for tick in ticks if known and 0.8 * min(known) <= tick <= 1.25 * max(known)]
        inside = found if len(found) <= 7 or not inside else inside
    figure.update_yaxes(type="log", tickmode="array", tickvals=inside, ticktext=[f"{tick:g}" for tick in inside])


def labels(figure: go.Figure, points: Sequence[tuple[float, float, str]]) -> None:
    """Name points (x, y, text) of a figure with a logarithmic y axis, each at the end of a line of its own.

    A label takes the first place around its point at which it meets no other label and no point, in plots of each size
    in :data:`INSIDE`: what is crowded fans out.
    """
    ys = [math.log10(y) for trace in figure.data for y in trace.y]
    low, high = min(ys) - 0.05, max(ys) + 0.35 * max(0.2, max(ys) - min(ys))
    left, right = min(x for x, _, _ in points), max(x for x, _, _ in points)

    def place(x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1.0)
        return size[0] * (0.05 + 0.9 * across), size[1] * (high - math.log10(y)) / (high - low)

    spots = [(x, y) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)]
    taken = {size: [_around(place(x, y, size), 6, 6) for x, y in spots] for size in INSIDE}
    for x, y, text in sorted(points):
        half = 3.5 * len(text) + 3

        def boxes(ax: int, ay: int, x: float = x, y: float = y, half: float = half) -> dict[tuple[int, int], Box]:
            at = {size: place(x, y, size) for size in INSIDE}
            return {size: _around((px + ax, py + ay), half, 8) for size, (px, py) in at.items()}

        def free(found: dict[tuple[int, int], Box]) -> bool:
            inside = all(box[0] > 0 and box[1] > 0 and box[2] < size[0] + 12 for size, box in found.items())
            return inside and not any(_meet(box, other) for size, box in found.items() for other in taken[size])

        tried = [(ax, ay) for ay in range(-20, -180, -15) for ax in (10, -10, 30, -30, 55, 85)]
        ax, ay = next((spot for spot in tried if free(boxes(*spot))), tried[0])
        for size, box in boxes(ax, ay).items():
            taken[size].append(box)
        figure.add_annotation(
            x=x, y=math.log10(y), text=text, showarrow=True, arrowhead=0, arrowwidth=1, arrowcolor=GREY, standoff=5,
            ax=ax, ay=ay, font={"size": 11},
        )  # fmt: skip
    figure.update_yaxes(range=[low, high])


def _around(middle: tuple[float, float], across: float, up: float) -> Box:
    """The box that reaches so far around a point."""
    return middle[0] - across, middle[1] - up, middle[0] + across, middle[1] + up


def _meet(one: Box, other: Box) -> bool:
    """Whether two boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def faint(colour: str, opacity: float) -> str:
    """A colour (``#rrggbb``) that lets through what is behind it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def whiskers(found: Sequence[ctp.Interval]) -> dict[str, Any]:
    """Error bars of intervals, as plotly takes them."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [share.high - share.value for share in found],
        "arrayminus": [share.value - share.low for share in found],
        "color": GREY,
    }


def note(height: int, text: str) -> go.Figure:
    """A figure that only says something."""
    figure = blank(height, "", "", margin={"l": 8, "r": 8, "t": 44, "b": 8})
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 15})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
