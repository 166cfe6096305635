"""Tab *Similarity*: cosines of learned rows to their nearest tokens, against the nulls (the paper's Figure 8)."""

from typing import Any

import gradio as gr
import plotly.graph_objects as go

import ctplab as ctp
from ctplab.app import figures, limits
from ctplab.app.bench import DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.header import Header
from ctplab.app.share import download
from ctplab.app.toast import plain_errors
from ctplab.inspect.similarity import PAPER_LARGEST
from ctplab.show.colours import ROW_NAMES, ROWS


def histogram(bench: Bench, chosen: Chosen, top: int, bins: int) -> dict[str, Any]:
    """Counts as ctplab gives them: {"edges", "counts", "mean"}."""
    top, bins = limits.whole(top, "nearest tokens a row", 1, 1000), limits.whole(bins, "bins", 1, 2000)
    small, saved = bench.fitting(chosen)
    with bench.turns.turn():
        return ctp.cosine_histogram(small.model, saved.prefix, saved.initial, top=top, bins=bins)


def draw(data: dict[str, Any], top: int, log: bool) -> go.Figure:
    """A stepped line for each set of rows, and the paper's largest cosine."""
    figure = figures.blank(440, f"cosine to each of the {top} nearest tokens", "count")
    edges = data["edges"]
    for name, counts in data["counts"].items():
        figure.add_scatter(
            x=edges,
            y=[*counts, counts[-1]],
            mode="lines",
            line={"shape": "hv", "color": ROWS[name], "width": 2},
            fill="tozeroy",
            fillcolor=figures.faint(ROWS[name], 0.12),
            name=f"{ROW_NAMES[name]}, mean {data['mean'][name]}",
            hovertemplate="cosine from %{x}: %{y} pairs",
        )
    figure.add_vline(x=PAPER_LARGEST, line={"dash": "dash", "color": figures.GREY})
    words = f"{PAPER_LARGEST}: the paper's largest"
    figure.add_annotation(x=PAPER_LARGEST, y=1, yref="paper", text=words, showarrow=False, xanchor="left", xshift=4)
    used = [i for counts in data["counts"].values() for i, count in enumerate(counts) if count]
    figure.update_xaxes(range=[edges[min(used)], edges[min(max(used) + 2, len(edges) - 1)]])
    if log:
        figure.update_yaxes(type="log")
    return figure


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    gr.Markdown(
        "Cosine similarity of every learned row to its nearest tokens. On its own such a number says little: compare "
        "it with what real tokens, the untrained rows and random directions reach."
    )
    with gr.Row():
        top = gr.Slider(1, 500, 100, step=1, label="Nearest tokens a row (n)", elem_id="top")
        bins = gr.Slider(10, 200, 80, step=5, label="Bins", elem_id="bins")
        log = gr.Checkbox(False, label="Logarithmic counts", elem_id="log")
    plot = gr.Plot(label="Cosines against their nulls", elem_id="histogram")
    csv = gr.Button("Download CSV", elem_id="histogram-csv")
    data = gr.State(None)

    def refresh(
        full: str, compressed: str, prompt: str | None, top: int, bins: int, log: bool
    ) -> tuple[Any, dict[str, Any]]:
        if not prompt:
            return figures.note(440, figures.NO_PROMPT), {}
        with plain_errors():
            found = histogram(bench, Chosen(full, compressed, prompt or ""), top, bins)
            return draw(found, int(top), log), found

    def save(data: dict[str, Any] | None) -> dict[str, str]:
        if not data:
            raise gr.Error("Open the histogram first.")
        lines = [",".join(("from", "to", *data["counts"]))]
        columns = zip(data["edges"], data["edges"][1:], *data["counts"].values(), strict=False)
        lines += [",".join(map(str, row)) for row in columns]
        return {"name": "cosines.csv", "type": "text/csv", "text": "\n".join(lines) + "\n"}

    gr.on(
        [tab.select, top.release, bins.release, log.input], refresh, [*header.chosen, top, bins, log], [plot, data],
        show_progress="minimal", **DEVICE, **PRIVATE,
    )  # fmt: skip
    download(csv, save, [data])

    def histogram_api(top: int = 100, bins: int = 80, full: str = "", compressed: str = "", prompt: str = "") -> dict:
        """Bin edges, counts and means of the four sets: soft, init, real, random."""
        with plain_errors():
            return histogram(bench, bench.chosen(full, compressed, prompt), top, bins)

    gr.api(histogram_api, api_name="histogram", **DEVICE)
