"""Tab *Latency*: time to the first token and tokens a second against k, with the prefix compiled and not."""

from dataclasses import asdict
from threading import Event
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio import events

import ctplab as ctp
from ctplab.app import figures, limits
from ctplab.app.bench import LONG, PRIVATE, Bench
from ctplab.app.header import Header
from ctplab.app.history import Form
from ctplab.app.toast import plain_errors
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.show.colours import ATTACHED

MOST = 12  # numbers of prompt tokens in one measurement
NAMES = {"concatenated": "concatenated", "compiled": "compiled", "none": "no prompt"}


def numbers(text: str) -> list[int]:
    """``0, 25, 50`` as numbers. Raises InputError for anything else."""
    try:
        return sorted({int(part) for part in text.replace(";", ",").split(",") if part.strip()})
    except ValueError:
        raise ctp.InputError(f"give numbers of prompt tokens such as 0, 25, 50, not {text!r}") from None


def measure(
    bench: Bench,
    model: str,
    tokens: list[int],
    length: Any,
    new: Any,
    repeats: Any,
    stop: Event,
    progress: Any = silent,
) -> list[dict]:
    """The points of ``ctp.latency`` as plain JSON, for k in ``tokens`` and texts of ``length`` tokens.

    Questions and jobs get their turn between two readings. Raises InputError if ``stop`` is set before the end.
    """
    if not isinstance(tokens, list | tuple) or not 1 <= len(tokens) <= MOST:
        raise ctp.InputError(f"prompt tokens: give one to {MOST} numbers")
    ks = [limits.whole(k, "prompt tokens", 0, 2000) for k in tokens]
    sizes: dict[str, int] = {
        "length": limits.whole(length, "text tokens", 1, 2000),
        "new_tokens": limits.whole(new, "new tokens", 2, 256),
        "repeats": limits.whole(repeats, "repeats", 1, 100),
    }
    loaded = bench.model(model)
    arm = ctp.Arm(model, loaded.model, prefix.none(loaded.model))

    def in_turn(items: Any, *, total: int | None = None, label: str = "") -> Any:
        for item in progress(items, total=total, label=label):
            if stop.is_set():
                raise ctp.InputError("the measurement was stopped")
            with bench.turns.turn():
                yield item

    points = ctp.latency(arm, tokens=ks, **sizes, progress=in_turn)
    return [asdict(point) for point in points]


def draw(points: list[dict], key: str, title: str) -> go.Figure:
    """A line for each way of attaching the prompt: medians, with quartiles as error bars.

    ``key``: ``first_token_ms`` or ``tokens_per_second``; ``title`` names the y axis.
    """
    figure = figures.blank(360, "prompt tokens (k)", title)
    for way, name in NAMES.items():
        mine = [p for p in points if p["attached"] == way]
        if not mine:
            continue
        spreads = [ctp.Interval(p[key]["median"], p[key]["low"], p[key]["high"]) for p in mine]
        figure.add_scatter(
            x=[p["k"] for p in mine], y=[s.value for s in spreads], mode="lines+markers", name=name,
            line={"color": ATTACHED[way]}, marker={"size": 9}, error_y=figures.whiskers(spreads),
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    gr.Markdown(
        "*Concatenated*: the prompt's rows stand in front of every request. *Compiled*: their keys and values were "
        "computed once. Median and quartiles; other work on this machine shows in the numbers."
    )
    with gr.Row(equal_height=True):
        tokens = gr.Textbox("0, 25, 50, 100", label="Prompt tokens (k)", elem_id="latency-tokens", min_width=130)
        length = gr.Number(64, label="Text tokens", precision=0, minimum=1, min_width=110)
        new = gr.Number(16, label="New tokens", precision=0, minimum=2, min_width=110)
        repeats = gr.Number(5, label="Repeats", precision=0, minimum=1, elem_id="latency-repeats", min_width=110)
    with gr.Row():
        go_button = gr.Button("Measure", variant="primary", elem_id="latency", min_width=100)
        stop = gr.Button("Stop", elem_id="latency-stop", min_width=60)
    with gr.Row():
        first = gr.Plot(
            figures.note(360, "Press Measure."), label="Time to first token", elem_id="first-token", min_width=320
        )
        speed = gr.Plot(figures.note(360, "Press Measure."), label="Tokens a second", elem_id="speed", min_width=320)

    def run(
        compressed: str,
        tokens: str,
        length: float,
        new: float,
        repeats: float,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        def progress(items: Any, *, total: int | None = None, label: str = "") -> Any:
            yield from bar.tqdm(items, total=total, desc=label)

        with plain_errors():
            flag = bench.begin(f"latency {request.session_hash}")
            points = measure(bench, compressed, numbers(tokens), length, new, repeats, flag, progress)
            return draw(points, "first_token_ms", "ms to the first token"), draw(
                points, "tokens_per_second", "tokens a second after it"
            )

    def stopped(request: gr.Request) -> None:
        bench.stop(f"latency {request.session_hash}")

    form: Form = {
        "compressed": header.compressed, "tokens": tokens, "length": length, "new_tokens": new, "repeats": repeats,
    }  # fmt: skip
    measured = go_button.click(run, list(form.values()), [first, speed], **LONG, **PRIVATE)
    header.past.record(measured, "latency", "latency", form, lambda told: f"k = {told['tokens']}")
    stop.click(stopped, None, None, queue=False, **PRIVATE)

    def latency_api(
        tokens: list[int] = [0, 25, 50],  # noqa: B006 (gradio reads the default from here)
        length: int = 64,
        new_tokens: int = 16,
        repeats: int = 3,
        compressed: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> list[dict]:
        """Time to the first token (ms) and tokens a second at every k, concatenated and compiled."""
        with plain_errors():
            flag = bench.begin(f"latency api {request.session_hash}")
            name = bench.chosen(compressed=compressed).compressed
            return measure(bench, name, tokens, length, new_tokens, repeats, flag)

    events.api(latency_api, api_name="latency", **LONG)
