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
GRID = "rgba(128, 140, 160, 0.25)"


def blank(height: int, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with named axes."""
    figure = go.Figure()
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        margin={"l": 60, "r": 16, "t": 44, "b": 50},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        hoverlabel={"font": {"size": 13}},
        **layout,
    )
    for axis, title in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        axis(title=title, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    return figure


def logarithmic(figure: go.Figure, values: Iterable[float]) -> None:
    """Make the y axis logarithmic, with few round numbers on it and none of the usual small ones between."""
    known = [value for value in values if value > 0]
    ticks = [digit * 10**power for power in range(-3, 7) for digit in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in ticks if known and 0.8 * min(known) <= tick <= 1.25 * max(known)]
    thinned = inside[:: max(1, len(inside) // 7)]
    figure.update_yaxes(type="log", tickmode="array", tickvals=thinned, ticktext=[f"{tick:g}" for tick in thinned])


def labels(figure: go.Figure, points: Iterable[tuple[float, float, str]]) -> None:
    """Name points (x, y, text) of a figure with a logarithmic y axis, each at the end of a line of its own height."""
    for turn, (x, y, text) in enumerate(sorted(points)):
        figure.add_annotation(
            x=x, y=math.log10(y), text=text, showarrow=True, arrowhead=0, arrowwidth=1, arrowcolor=GREY, standoff=6,
            ax=(-14, 14)[turn % 2], ay=(-24, -42, -60)[turn % 3], font={"size": 11},
        )  # fmt: skip
    ys = [math.log10(y) for trace in figure.data for y in trace.y]
    figure.update_yaxes(range=[min(ys) - 0.05, max(ys) + 0.35 * max(0.2, max(ys) - min(ys))])


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
    figure = blank(height, "", "")
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 15})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
