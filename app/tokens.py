"""Tab *Prompt tokens*: the vocabulary's nearest tokens to every learned row, and the cosines against their nulls."""

from typing import Any

import gradio as gr

import ctplab as ctp


def rows(bench: dict[str, Any]) -> list[list[Any]]:
    """One table row for every prompt token."""
    reports = ctp.inspect_prompt(bench["compressed"], bench["tokenizer"], bench["soft"], bench["initial"], top=5)
    return [
        [
            r.row,
            r.init,
            r.init_rank,
            round(r.drift, 3),
            round(r.norm, 3),
            "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in r.nearest),
        ]
        for r in reports
    ]


def histogram(bench: dict[str, Any], top: int, bins: int) -> Any:
    """Cosine of learned rows to their ``top`` nearest tokens, with the nulls, as a plotly figure."""
    import plotly.graph_objects as go

    data = ctp.cosine_histogram(bench["compressed"], bench["soft"], bench["initial"], top=int(top), bins=int(bins))
    figure = go.Figure()
    for name, counts in data["counts"].items():
        figure.add_scatter(x=data["edges"][:-1], y=counts, mode="lines", line_shape="hv", name=name)
    figure.update_layout(height=380, xaxis_title="cosine similarity", yaxis_title="count", template="plotly_white")
    return figure


def build(bench: dict[str, Any]) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    headers = ["row", "started as", "its rank now", "drift", "norm", "nearest tokens (cosine)"]
    gr.Dataframe(rows(bench), headers=headers, label="Learned rows", elem_id="tokens", interactive=False)
    with gr.Row():
        top = gr.Slider(5, 200, 100, step=5, label="Nearest tokens a row")
        bins = gr.Slider(10, 100, 40, step=5, label="Bins")
    plot = gr.Plot(histogram(bench, 100, 40), label="Against the nulls", elem_id="histogram")

    def redraw(top: int, bins: int) -> Any:
        return histogram(bench, top, bins)

    for slider in (top, bins):
        slider.release(redraw, [top, bins], plot, api_name=False)
