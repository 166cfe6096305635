"""Figures and words of the tab *Train*: where what is learned stands between two models, and what it answers."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ctplab.app import figures
from ctplab.app.jobs import Job
from ctplab.show.colours import GREY, colour

HEIGHT = 480
MOST = 600  # steps that are drawn


LEVELS = {
    "compressed": ("compressed model", "compressed"),
    "full": ("full model", "full"),
    "before": ("before the first step", "compressed"),
}
"""Lines that a curve stands between, by name: in words, and the arm whose colour they have."""
Point = tuple[int, float, float | None]
"""A step, its objective, and the NLL on the validation windows if it was measured."""


def recovery(points: Sequence[Point], baselines: Mapping[str, float]) -> float | None:
    """Share of the validation gap that the best so far closes; None before it is known, or without a gap."""
    measured = [value for _, _, value in points if value is not None]
    full, small = baselines.get("full"), baselines.get("compressed")
    if not measured or full is None or small is None or small - full < 1e-6:
        return None
    return (small - min(measured)) / (small - full)


def curves(points: Sequence[Point], baselines: Mapping[str, float], total: int) -> go.Figure:
    """Validation NLL between the full and the compressed model, and below it the objective of every step."""
    if not points:
        return figures.note(HEIGHT, "Curves appear with the first step.")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1, row_heights=[0.6, 0.4])
    figure.update_layout(figures.blank(HEIGHT, "", "").layout)
    drawn = points[:: max(1, len(points) // MOST)]  # a long job's curve is sent every second
    steps = [step + 1 for step, _, _ in drawn]
    measured = [(step + 1, value) for step, _, value in points if value is not None]
    figure.add_scatter(
        x=steps, y=[loss for _, loss, _ in drawn], mode="lines", name="objective of each step",
        line={"color": GREY, "width": 1.5}, row=2, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[step for step, _ in measured], y=[value for _, value in measured], mode="lines+markers",
        name="validation NLL", line={"color": colour("soft"), "width": 2.5}, row=1, col=1,
    )  # fmt: skip
    for name, (words, like) in LEVELS.items():
        if name in baselines:
            figure.add_scatter(
                x=[1, max(total, steps[-1])], y=[baselines[name]] * 2, mode="lines", name=words,
                line={"color": colour(like), "width": 2, "dash": "dash"}, row=1, col=1,
            )  # fmt: skip
    figure.update_xaxes(gridcolor=figures.GRID, zeroline=False, range=[0, max(total, steps[-1]) + 1])
    figure.update_xaxes(title="step", row=2, col=1)
    figure.update_yaxes(gridcolor=figures.GRID, zeroline=False)
    figure.update_yaxes(title="nats a token", row=1, col=1)
    figure.update_yaxes(title="objective", row=2, col=1)
    return figure


def told(job: Job | None) -> str:
    """How much of the gap is closed, and one question's answer as it changed, as HTML."""
    if job is None:
        return ""
    share, lines = recovery(job.points, job.baselines), []
    best = escape(str(job.result.get("words", "prompt")))
    measure = "ctplab recover" if best == "prompt" else "ctplab recover --tuned"
    if share is not None:
        lines.append(
            f"<p><strong>{100 * share:.0f}%</strong> of the gap between the compressed and the full model is closed on "
            f"the validation windows (the best {best} so far; no interval, and the windows also choose it: "
            f"<code>{measure}</code> measures it on text that nothing chose).</p>"
        )
    lines += [f"<p>⚠ {escape(warning)}</p>" for warning in job.result.get("warnings", ())]
    if job.said:
        rows = "".join(f"<tr><td>{step}</td><td>{escape(text) or '(empty)'}</td></tr>" for step, text in job.said[-12:])
        lines.append(
            f'<table class="said"><caption>{escape(job.result.get("watched", ""))}</caption>'
            f"<tr><th>after step</th><th>answer</th></tr>{rows}</table>"
        )
    return "".join(lines)
