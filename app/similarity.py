"""Tab *Similarity*: cosines of learned rows to their nearest tokens, against the nulls (the paper's Figure 8).

Below the histogram every learned row has a point of its own; a click on one puts it in view, here and on the map.
"""

from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio import events
from plotly.subplots import make_subplots

import ctplab as ctp
from ctplab.app import figures, limits
from ctplab.app.bench import DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.header import Header
from ctplab.app.share import download
from ctplab.app.toast import plain_errors
from ctplab.disk import slug
from ctplab.inspect.similarity import PAPER_LARGEST
from ctplab.show.colours import ROW_NAMES, ROWS, colour

HEIGHT = 620
ALL = "none"  # is in view


def histogram(bench: Bench, chosen: Chosen, top: int, bins: int) -> dict[str, Any]:
    """Counts as ctplab gives them: {"edges", "counts", "mean", "rows"}."""
    top, bins = limits.whole(top, "nearest tokens a row", 1, 1000), limits.whole(bins, "bins", 1, 2000)
    small, learned, initial = bench.fitting(chosen)
    with bench.turns.turn():
        return ctp.cosine_histogram(small.model, learned, initial, top=top, bins=bins)


def draw(data: dict[str, Any], top: int, log: bool, picked: int | None = None) -> go.Figure:
    """A stepped line for each set of rows, and the paper's largest cosine; below, the rows one by one.

    The row ``picked`` is larger, with the range of its own cosines.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.66, 0.34])
    figure.update_layout(figures.blank(HEIGHT, "", "").layout)
    edges, rows = data["edges"], data["rows"]
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
            row=1, col=1,
        )  # fmt: skip
    means = rows["mean"]
    numbers = list(range(len(means)))
    figure.add_scatter(
        x=means, y=numbers, mode="markers", showlegend=False, customdata=numbers, name="mean of each learned row",
        text=[f"learned row {n}: {low:.2f} to {high:.2f}" for n, low, high in zip(numbers, rows["low"], rows["high"],
              strict=True)],
        hoverinfo="text", marker={"color": colour("soft"), "size": 7}, row=2, col=1,
    )  # fmt: skip
    if picked is not None and picked < len(means):
        figure.add_scatter(
            x=[rows["low"][picked], means[picked], rows["high"][picked]], y=[picked] * 3, mode="lines+markers",
            name=f"row {picked}, mean {means[picked]:.4f}", customdata=[picked] * 3, hovertemplate="%{x}",
            line={"color": figures.PICKED, "width": 3}, marker={"size": [7, 14, 7]}, row=2, col=1,
        )  # fmt: skip
    figure.add_vline(x=PAPER_LARGEST, line={"dash": "dash", "color": figures.GREY}, row=1, col=1)  # pyright: ignore
    words = f"{PAPER_LARGEST}: the paper's largest"
    figure.add_annotation(
        x=PAPER_LARGEST, y=1, yref="y domain", text=words, showarrow=False, xanchor="left", xshift=4, row=1, col=1
    )
    used = [i for counts in data["counts"].values() for i, count in enumerate(counts) if count]
    figure.update_xaxes(
        gridcolor=figures.GRID, zeroline=False, range=[edges[min(used)], edges[min(max(used) + 2, len(edges) - 1)]]
    )
    figure.update_xaxes(title=f"cosine to the {top} nearest tokens", row=2, col=1)
    figure.update_yaxes(gridcolor=figures.GRID, zeroline=False)
    figure.update_yaxes(title="pairs", type="log" if log else "linear", row=1, col=1)
    figure.update_yaxes(title="row", row=2, col=1)
    return figure


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    gr.Markdown(
        "Cosine similarity of every learned row to its nearest tokens. On its own such a number says little: compare "
        "it with what real tokens, the untrained rows and random directions reach. Below: each learned row's own mean; "
        "a click puts the row in view, here and on the map in *Prompt tokens*."
    )
    with gr.Row():
        top = gr.Slider(1, 500, 100, step=1, label="Nearest tokens a row (n)", elem_id="top", min_width=200)
        bins = gr.Slider(10, 200, 80, step=5, label="Bins", elem_id="bins", min_width=200)
        which = gr.Dropdown([ALL], value=ALL, label="Row in view", elem_id="histogram-row", min_width=120)
        log = gr.Checkbox(False, label="Logarithmic counts", elem_id="log", min_width=160)
    plot = gr.Plot(label="Cosines against their nulls", elem_id="histogram")
    clicked = gr.Textbox(visible="hidden", elem_id="histogram-pick")
    csv = gr.Button("Download CSV", elem_id="histogram-csv")
    data = gr.State(None)

    def rows_of(found: dict[str, Any], picked: int | None) -> tuple[Any, int | None]:
        """The list of rows, and the one in view if this prompt has it."""
        k = len(found["rows"]["mean"])
        picked = picked if picked is not None and picked < k else None
        return gr.update(choices=[ALL, *map(str, range(k))], value=ALL if picked is None else str(picked)), picked

    def refresh(
        full: str, compressed: str, prompt: str | None, top: int, bins: int, log: bool, picked: int | None
    ) -> tuple[Any, ...]:
        if not prompt:
            return figures.note(HEIGHT, figures.NO_PROMPT), {}, gr.update(choices=[ALL], value=ALL), None
        with plain_errors():
            found = histogram(bench, Chosen(full, compressed, prompt or ""), top, bins)
            listed, picked = rows_of(found, picked)
            return draw(found, int(top), log, picked), found, listed, picked

    def pick(row: str, found: dict[str, Any] | None, top: int, log: bool) -> tuple[Any, ...]:
        if not found:
            return (gr.skip(),) * 3
        with plain_errors():
            k = len(found["rows"]["mean"])
            picked = None if row == ALL else limits.whole(row, "row", 0, k - 1)
            return draw(found, int(top), log, picked), rows_of(found, picked)[0], picked

    def save(data: dict[str, Any] | None, compressed: str, prompt: str | None) -> dict[str, str]:
        if not data:
            raise gr.Error("Open the histogram first.")
        lines = [",".join(("from", "to", *data["counts"]))]
        columns = zip(data["edges"], data["edges"][1:], *data["counts"].values(), strict=False)
        lines += [",".join(map(str, row)) for row in columns]
        return {
            "name": f"cosines-{slug(f'{compressed}-{prompt}')}.csv",
            "type": "text/csv",
            "text": "\n".join(lines) + "\n",
        }

    gr.on(
        [tab.select, top.release, bins.release, log.input], refresh, [*header.chosen, top, bins, log, header.row],
        [plot, data, which, header.row], show_progress="minimal", **DEVICE, **PRIVATE,
    )  # fmt: skip
    for control, chosen in ((which, which.input), (clicked, clicked.submit)):
        chosen(
            pick, [control, data, top, log], [plot, which, header.row], show_progress="hidden", queue=False, **PRIVATE
        )
    download(csv, save, [data, header.compressed, header.prompt])

    def histogram_api(top: int = 100, bins: int = 80, full: str = "", compressed: str = "", prompt: str = "") -> dict:
        """Bin edges, counts and means of the four sets (soft, init, real, random); low, mean and high of each row."""
        with plain_errors():
            return histogram(bench, bench.chosen(full, compressed, prompt), top, bins)

    events.api(histogram_api, api_name="histogram", **DEVICE)
