"""In the tab *Prompt tokens*: what each learned row is worth, one row after the other, as bars beside the rows."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio import events

import ctplab as ctp
from ctplab.app import figures, limits
from ctplab.app.bench import LONG, PRIVATE, Bench, Chosen
from ctplab.app.compress import CORPORA
from ctplab.app.header import Header
from ctplab.app.history import Form
from ctplab.app.suited import suited, worth_values
from ctplab.app.toast import plain_errors
from ctplab.measure.worth import RowWorth, in_words
from ctplab.show.rows import VERDICTS

HEIGHT = 320
NOTHING = "Bars appear row by row, here and in the table's last column."
PERIOD = 0.5  # seconds between updates of a page


@dataclass(frozen=True)
class Worths:
    """What was found so far, and where."""

    where: str
    chosen: Chosen
    k: int
    gain: ctp.Interval
    """Fall of the NLL a token by the whole prompt."""
    rows: tuple[RowWorth, ...] = ()

    def words(self) -> str:
        """Where it was measured, how far it is, and what it says, as Markdown."""
        lines = [f"{len(self.rows)} of {self.k} rows, measured on {self.where}."]
        if self.rows:
            lines += in_words(self.rows, self.gain if len(self.rows) == self.k else None)
        return " ".join(lines)


def measure(bench: Bench, chosen: Chosen, corpus: str, windows: Any, seq_len: Any, stop: Event) -> Iterator[Worths]:
    """Leave out one row after the other until ``stop`` is set. Rows that were measured before are taken from the runs.

    Others get their turn on the device between two rows. Raises InputError.
    """
    windows = limits.whole(windows, "windows", 2, 1000)
    if not chosen.prompt:
        raise ctp.InputError("no prompt is loaded: load one above, or learn one in the tab Train")
    (arm, small), (plain, _) = (bench.arm(name, chosen, "", 0) for name in ("soft", "compressed"))
    text = bench.corpus(corpus, small.tokenizer, seq_len).test
    limits.whole(windows * text.seq_len, "windows x tokens a window", 2, 2**20)
    keep = ctp.kept_in(bench.store(chosen).worth(small.name, chosen.prompt, text.name))
    how: dict[str, Any] = {"limit": windows, "keep": keep}
    with bench.turns.turn():
        alone = ctp.window_scores(plain, text, name="none", **how)
    with bench.turns.turn():
        gain = ctp.change(alone, ctp.window_scores(arm, text, name="whole", **how))
    n = min(windows, len(text.windows))
    where = (
        f"{text.name} (test split), {n} windows of {text.seq_len} tokens, through {small.name} behind {chosen.prompt}"
    )
    found = Worths(where, chosen, arm.prefix.k, gain)
    yield found
    rows = ctp.row_worth(arm, text, **how)
    while not stop.is_set():
        with bench.turns.turn():
            row = next(rows, None)
        if row is None:
            return
        found = Worths(where, chosen, arm.prefix.k, gain, (*found.rows, row))
        yield found


def draw(found: Worths | None, picked: int | None = None) -> go.Figure:
    """A bar for every row with its 95% interval, in the colour of its verdict; the row ``picked`` is named."""
    if found is None:
        return figures.note(HEIGHT, NOTHING)
    figure = figures.blank(HEIGHT, "row", "nats a token lost without it")
    for verdict, colour in VERDICTS.items():
        some = [row for row in found.rows if row.verdict == verdict]
        if some:
            figure.add_bar(
                x=[r.row for r in some], y=[r.worth.value for r in some], name=f"{verdict} ({len(some)})",
                customdata=[r.row for r in some], error_y=figures.whiskers([r.worth for r in some]),
                hovertemplate="row %{x}: %{y:.4f}",
                marker={"color": colour},
            )  # fmt: skip
    for row in found.rows:
        if row.row == picked:
            figure.add_annotation(
                x=row.row, y=max(row.worth.high, 0), text=f"row {row.row} ▾", showarrow=False, yshift=10,
                font={"color": figures.PICKED},
            )  # fmt: skip
    figure.update_xaxes(range=[-0.6, found.k - 0.4])
    figure.update_layout(bargap=0.15, barmode="overlay")
    return figure


def column(found: Worths | None, chosen: Chosen, n: int) -> tuple[list[Any], list[str]]:
    """For ``n`` rows of the table: the worth in thousandths of a nat, and a bar behind it. Empty for another prompt."""
    values: list[Any] = [""] * n
    styles = [""] * n
    if found is None or found.chosen != chosen or found.k != n or not found.rows:
        return values, styles
    most = max(abs(row.worth.value) for row in found.rows) or 1.0
    for row in found.rows:
        share = round(100 * abs(row.worth.value) / most)
        tone = figures.faint(VERDICTS[row.verdict], 0.45)
        values[row.row] = round(1000 * row.worth.value, 2)
        styles[row.row] = f"background: linear-gradient(90deg, {tone} {share}%, transparent {share}%)"
    return values, styles


def build(bench: Bench, header: Header, found: gr.State, records: gr.State, table: gr.Dataframe, tabled: Any) -> None:
    """Lay the part out inside the current ``gr.Blocks``.

    ``found``: keeps the :class:`Worths`. ``tabled(found, records, picked, chosen)``: the value of ``table``, whose last
    column grows with them.
    """
    first = suited(bench, bench.chosen().full)
    with gr.Accordion("What each row is worth: the loss without it", open=False, elem_id="worth-box"):
        with gr.Row():
            corpus = gr.Dropdown(
                CORPORA, value=first.corpus, allow_custom_value=True, label="Text (test split)",
                elem_id="worth-corpus", min_width=150,
            )  # fmt: skip
            windows = gr.Number(
                first.scored, label="Windows", precision=0, minimum=2, elem_id="worth-windows", min_width=110
            )
            seq_len = gr.Number(first.seq_len, label="Tokens a window", precision=0, minimum=2, min_width=130)
        with gr.Row():
            go_button = gr.Button("Leave out one after the other", variant="primary", elem_id="worth-go", min_width=220)
            stop = gr.Button("Stop", elem_id="worth-stop", min_width=80)
        told = gr.Markdown(elem_id="worth-told")
        plot = gr.Plot(draw(None), label="What each row is worth, 95% intervals (click a bar)", elem_id="worth")

    def run(
        request: gr.Request, full: str, compressed: str, prompt: str | None, corpus: str, windows: float,
        seq_len: float, picked: int | None, records: list[dict],
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        flag, shown, now = bench.begin(f"worth {request.session_hash}"), 0.0, None
        with plain_errors():
            chosen = Chosen(full, compressed, prompt or "")
            for now in measure(bench, chosen, corpus, windows, seq_len, flag):
                if time.monotonic() - shown >= PERIOD:
                    yield now, now.words(), draw(now, picked), tabled(now, records, picked, chosen)
                    shown = time.monotonic()
            if now is not None:
                words = now.words() + (" Stopped; it goes on where it stopped." if flag.is_set() else "")
                yield now, words, draw(now, picked), tabled(now, records, picked, chosen)

    def stopped(request: gr.Request) -> None:
        bench.stop(f"worth {request.session_hash}")

    header.on_another_model(lambda name: worth_values(suited(bench, name)), [corpus, windows, seq_len])

    def words_of(told: dict[str, Any]) -> str:
        return f"{told['windows']} windows of {told['corpus']}"

    form: Form = {**header.names, "corpus": corpus, "windows": windows, "seq_len": seq_len}
    started = go_button.click(
        run, [*form.values(), header.row, records], [found, told, plot, table], show_progress="hidden", **LONG,
        **PRIVATE,
    )  # fmt: skip
    header.past.record(started, "worth of rows", "prompt-tokens", form, words_of)
    stop.click(stopped, None, None, queue=False, **PRIVATE)
    header.row.change(draw, [found, header.row], plot, show_progress="hidden", queue=False, **PRIVATE)

    def worth(
        corpus: str = "atlas-web", windows: int = 32, seq_len: int = 128, full: str = "", compressed: str = "",
        prompt: str = "", request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[dict]:  # fmt: skip
        """What each row of the prompt is worth, row by row: {"where", "words", "gain", "rows"} so far."""
        with plain_errors():
            flag = bench.begin(f"worth api {request.session_hash}")
            for now in measure(bench, bench.chosen(full, compressed, prompt), corpus, windows, seq_len, flag):
                rows = [{"row": row.row, **asdict(row.worth), "verdict": row.verdict} for row in now.rows]
                yield {"where": now.where, "words": now.words(), "gain": asdict(now.gain), "rows": rows}

    events.api(worth, api_name="worth", **LONG)
