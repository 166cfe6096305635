"""The map of *Prompt tokens*: learned and untrained rows on the vocabulary's two principal axes."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

import ctplab as ctp
from ctplab.app import figures, limits
from ctplab.app.bench import Bench, Chosen
from ctplab.show.colours import colour


def inside_text(bench: Bench, chosen: Chosen, word: str) -> tuple[str, list[int]]:
    """What the user typed as it stands inside a text (mostly behind a space), and its token ids."""
    word, tokenizer = limits.text(word, "word", 200), bench.model(chosen.compressed).tokenizer
    ways = {text: list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (f" {word.strip()}", word)}
    return min(ways.items(), key=lambda way: len(way[1])) if word.strip() else ("", [])


def map_of(bench: Bench, chosen: Chosen, word: str, picked: int | None) -> go.Figure:
    """The map of the chosen prompt, with the user's word on it."""
    small, learned, initial = bench.fitting(chosen)
    extra = inside_text(bench, chosen, word)[1]
    with bench.turns.turn():
        points = ctp.project(small.model, learned, initial, tuple(extra))
    return draw_map(points, lambda token: small.tokenizer.decode([token]), picked)


def draw_map(points: dict[str, Any], spell: Callable[[int], str], picked: int | None = None) -> go.Figure:
    """Vocabulary, untrained rows and learned rows on two principal axes, with arrows from init to learned.

    ``points`` from ``inspect.similarity.project``; ``spell`` writes a token id; the row ``picked`` has a ring.
    """
    x, y = (f"axis {i + 1} ({100 * share:.0f}% of the variance)" for i, share in enumerate(points["explained"]))
    figure = figures.blank(520, x, y)

    def names(ids: list[int] | None, kind: str) -> list[str]:
        return [f"{kind} {spell(i)!r}" for i in ids or ()]

    def scatter(name: str, group: str, text: list[str], **style: Any) -> None:
        spots = points[group]
        rows = list(range(len(spots["x"]))) if group in ("init", "learned") else None  # what a click picks
        figure.add_scatter(
            x=spots["x"], y=spots["y"], mode="markers", name=name, text=text, hoverinfo="text", marker=style,
            customdata=rows,
        )  # fmt: skip

    start, end = points["init"], points["learned"]
    scatter("vocabulary", "vocabulary", names(points["vocabulary"]["ids"], "token"), color=figures.GREY, size=4,
            opacity=0.35)  # fmt: skip
    path: tuple[list, list] = ([], [])
    for i in range(len(end["x"])):
        path[0].extend((start["x"][i], end["x"][i], None))
        path[1].extend((start["y"][i], end["y"][i], None))
    heads = [0, 9, 0] * len(end["x"])
    figure.add_scatter(
        x=path[0], y=path[1], mode="lines+markers", name="init → learned", hoverinfo="skip",
        line={"color": figures.faint(colour("soft"), 0.45), "width": 1},
        marker={"symbol": "arrow", "angleref": "previous", "size": heads, "color": colour("soft")},
    )  # fmt: skip
    scatter("init", "init", names(start["ids"], "row started as"), color=colour("init"), size=6)
    k = len(end["x"])
    scatter("learned", "learned", [f"learned row {i}" for i in range(k)], color=colour("soft"), size=7)
    if picked is not None and picked < k:
        figure.add_scatter(
            x=[end["x"][picked]], y=[end["y"][picked]], text=[f"row {picked}"], textposition="top center",
            mode="markers+text", name=f"row {picked}", showlegend=False, hoverinfo="skip", customdata=[picked],
            marker={"symbol": "circle-open", "size": 16, "color": figures.PICKED, "line": {"width": 3}},
        )  # fmt: skip
    if points["extra"]["x"]:
        scatter(
            "your word",
            "extra",
            names(points["extra"]["ids"], "your token"),
            color=figures.PICKED,
            size=13,
            symbol="star",
        )
    return figure
