"""Interactive twins of the figures, for the dashboard and notebooks: the same data and colours, as plotly figures."""

from collections.abc import Sequence
from typing import Any

from ctplab.errors import InputError
from ctplab.measure.latency import LatencyPoint
from ctplab.measure.recovery import Recovery
from ctplab.measure.transfer import Cell
from ctplab.plots import COLOURS
from ctplab.plots_measure import ATTACHED, GREY


def _figure(x: str, y: str, title: str, height: int = 420) -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise InputError("interactive figures need plotly: pip install 'ctplab[app]'") from None
    figure = go.Figure()
    return figure.update_layout(height=height, xaxis_title=x, yaxis_title=y, title=title, template="plotly_white")


def recovery_bars(found: Recovery, corpus: str) -> Any:
    """Share of the gap closed by every arm, with 95% intervals."""
    figure = _figure(f"share of the NLL gap closed on {corpus}", "", "Recovery and its controls")
    for name, arm in reversed(found.items()):
        if name in ("full", "compressed"):
            continue
        share = arm.recovery
        error = {"type": "data", "array": [share.high - share.value], "arrayminus": [share.value - share.low]}
        text = f"perplexity {arm.ppl:.2f}"
        figure.add_bar(
            x=[share.value], y=[name], orientation="h", error_x=error, marker_color=COLOURS.get(name, GREY),
            hovertext=text, name=name,
        )  # fmt: skip
    figure.add_vline(x=1, line_dash="dash")
    return figure.update_layout(showlegend=False)


def transfer_matrix(cells: Sequence[Cell]) -> Any:
    """Heat map of one corpus; the home of a prompt is starred, refused pairs say why."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = [source for source in dict.fromkeys(cell.source for cell in cells) if source != "none"]
    at = {(cell.source, cell.target): cell for cell in cells}

    def value(cell: Cell) -> float | None:
        return cell.change.value if cell.change else None

    def text(cell: Cell) -> str:
        return "refused" if cell.ppl is None else f"{cell.ppl:.2f}{' *' if cell.diagonal else ''}"

    def hover(cell: Cell) -> str:
        return cell.refused or f"{cell.change} nats a token against no prompt"

    grid = [[at[source, target] for target in targets] for source in sources]
    figure = _figure("target", "prompt", f"Perplexity with each prompt on {cells[0].corpus} (* its home)")
    figure.add_heatmap(
        x=targets, y=sources, z=[[value(c) for c in row] for row in grid], zmid=0, colorscale="PuOr", reversescale=True,
        text=[[text(c) for c in row] for row in grid], texttemplate="%{text}",
        hovertext=[[hover(c) for c in row] for row in grid], colorbar_title="nats a token",
    )  # fmt: skip
    return figure


def latency(points: Sequence[LatencyPoint]) -> Any:
    """Time to the first token against k, a line for every arm and way of attaching."""
    figure = _figure("prompt tokens k", "time to the first token, ms", "Latency (median, quartiles)")
    for arm in dict.fromkeys(point.arm for point in points):
        for attached in ("concatenated", "compiled"):
            line = [p for p in points if p.arm == arm and p.attached in ("none", attached)]
            spreads = [p.first_token_ms for p in line]
            error = {
                "type": "data",
                "array": [s.high - s.median for s in spreads],
                "arrayminus": [s.median - s.low for s in spreads],
            }
            figure.add_scatter(
                x=[p.k for p in line], y=[s.median for s in spreads], error_y=error, name=f"{arm}, {attached}",
                line_color=ATTACHED[attached], mode="lines+markers",
            )  # fmt: skip
    return figure.update_yaxes(rangemode="tozero")


def curve(records: Sequence[dict[str, Any]]) -> Any:
    """Training loss and validation NLL against the step: ``records`` as in a prompt's file."""
    figure = _figure("step", "training objective, nats a token", "Learning the soft prompt")
    figure.add_scatter(
        x=[r["step"] + 1 for r in records], y=[r["loss"] for r in records], line_color="#BBBBBB", name="training"
    )
    measured = [r for r in records if r["validation"] is not None]
    figure.add_scatter(
        x=[r["step"] + 1 for r in measured], y=[r["validation"] for r in measured], yaxis="y2",
        line_color=COLOURS["soft"], mode="lines+markers", name="validation NLL",
    )  # fmt: skip
    right = {"title": "validation NLL, nats a token", "overlaying": "y", "side": "right", "tickmode": "auto"}
    right |= {"showgrid": False, "tickformat": ".2f"}
    return figure.update_layout(yaxis2=right, legend={"orientation": "h", "y": 1.1})


def levels(levels: dict[str, dict[str, Any]], full: dict[str, Any], corpus: str) -> Any:
    """Perplexity (log) against bytes; the line to the right of a level is what packing saves.

    ``levels``: tag -> {"bytes": packed, "ppl": {corpus: x}}, ``full`` likewise; unpacked, every level has its bytes.
    """
    figure = _figure("model on disk, MB", f"perplexity on {corpus} (log)", "What compression costs")
    dense = full["bytes"] / 1e6
    names = list(levels)
    packed, y = [levels[n]["bytes"] / 1e6 for n in names], [levels[n]["ppl"][corpus] for n in names]
    for x, value in zip(packed, y, strict=True):
        figure.add_scatter(
            x=[x, dense], y=[value, value], mode="lines", line={"color": "#CCCCCC", "width": 1}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    best = full["ppl"][corpus]  # not add_hline, whose label a log axis puts elsewhere
    figure.add_scatter(
        x=[min([*packed, dense]), dense], y=[best, best], mode="lines", name="full",
        line={"color": COLOURS["full"], "dash": "dash"},
    )  # fmt: skip
    spots = (("packed", packed, "circle", "markers+text"), ("dense", [dense] * len(names), "circle-open", "markers"))
    for kind, x, symbol, mode in spots:
        figure.add_scatter(
            x=x, y=y, mode=mode, name=kind, text=names, hovertext=names, cliponaxis=False,
            textposition=["top center" if i % 2 == 0 else "bottom center" for i in range(len(names))],
            marker={"color": COLOURS["compressed"], "symbol": symbol, "size": 9},
        )  # fmt: skip
    return figure.update_yaxes(type="log", dtick="D2")


def histogram(data: dict[str, Any]) -> Any:
    """Cosines to the nearest tokens against their nulls (Figure 8); the line at 0.16 is the paper's ceiling."""
    from ctplab.paper import LARGEST_COSINE

    figure = _figure("cosine similarity", "count", "Nearest tokens: the prompt against its nulls")
    colours = {"soft": COLOURS["soft"], "init": COLOURS["init"], "real": "#000000", "random": COLOURS["random"]}
    for name, counts in data["counts"].items():
        figure.add_scatter(
            x=data["edges"][:-1], y=counts, mode="lines", line_shape="hv", line_color=colours[name], name=name
        )
    figure.add_vline(x=LARGEST_COSINE, line_dash="dot", annotation_text="the paper's ceiling")
    return figure


def row_map(found: dict[str, Any], tokens: dict[int, str] | None = None) -> Any:
    """The map of rows; ``tokens`` names vocabulary ids on hovering."""
    x, y = (100 * share for share in found["explained"])
    figure = _figure(f"first axis ({x:.0f}% of variance)", f"second axis ({y:.0f}%)", "Where the rows went", 520)
    styles = {"vocabulary": ("#CCCCCC", 4), "extra": ("#000000", 7), "init": (COLOURS["init"], 7)}
    styles["learned"] = (COLOURS["soft"], 8)
    for name, (colour, size) in styles.items():
        points = found[name]
        ids = points["ids"] or range(len(points["x"]))
        label = [(tokens or {}).get(i, str(i)) for i in ids]
        figure.add_scatter(
            x=points["x"], y=points["y"], mode="markers", name=name, hovertext=label,
            marker={"color": colour, "size": size},
        )  # fmt: skip
    return figure
