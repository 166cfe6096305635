"""Tab *Prompt tokens*: what the vocabulary says about every learned row, and a map of where the rows went."""

from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio import events

import ctplab as ctp
from ctplab.app import export, figures, limits, rowmap, worth
from ctplab.app.bench import DEVICE, LONG, PRIVATE, Bench, Chosen
from ctplab.app.header import Header
from ctplab.app.toast import plain_errors
from ctplab.inspect.nearest import METRICS
from ctplab.prompts.prefix import text_rows

SHOWN, KEPT = 5, 25  # neighbours in the table, and after a click on a row
HEADERS = ["row", "nearest tokens", "norm", "started as", "its rank now", "drift", "worth"]
SEQ_LEN, WINDOWS = 128, 32  # of the perplexity of the nearest-token hard prompt


def rows(bench: Bench, chosen: Chosen, top: int, metric: str, centre: bool, special: bool, unused: bool) -> list[dict]:
    """One plain record for every row of the chosen prompt."""
    top, metric = limits.whole(top, "top", 1, 1000), limits.one_of(metric, "measure", METRICS)
    small, learned, initial = bench.fitting(chosen)
    with bench.turns.turn():
        found = ctp.inspect_prompt(
            small.model, small.tokenizer, learned, initial, top=top, metric=metric, centre=centre,
            drop_special=special, drop_unused=unused,
        )  # fmt: skip
    return [asdict(row) for row in found]


def listed(nearest: list[Any]) -> str:
    """``'the' 0.31  'a' 0.30``."""
    return "   ".join(f"{token!r} {value:.2f}" for token, value in nearest)


def table(
    found: list[dict], picked: int | None = None, worths: tuple[list[Any], list[str]] | None = None
) -> dict[str, Any]:
    """The records as a Dataframe value; the row ``picked`` is marked. ``worths``: values and styles of that column."""
    values, bars = worths or ([""] * len(found), [""] * len(found))
    data = [
        [r["row"], listed(r["nearest"][:SHOWN]), round(r["norm"], 2), repr(r["init"]) if r["init"] is not None else "",
         "" if r["init_rank"] is None else r["init_rank"], round(r["drift"], 2), value]
        for r, value in zip(found, values, strict=True)
    ]  # fmt: skip
    marked = f"background-color: {figures.faint(figures.PICKED, 0.25)}"
    styling = [
        [*[marked if r["row"] == picked else ""] * (len(HEADERS) - 1), bar] for r, bar in zip(found, bars, strict=True)
    ]
    return {"headers": HEADERS, "data": data, "metadata": {"styling": styling}}


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    gr.Markdown(
        "Every learned row with its nearest vocabulary tokens. *Drift* is the way from its start, relative to the "
        "start's length; *its rank now* says how many tokens are nearer than the one it started as (0: none); *worth*, "
        "measured below, is the loss without the row in thousandths of a nat a token."
    )
    with gr.Row():
        metric = gr.Radio(list(METRICS), value="cosine", label="Measure", elem_id="metric")
        centre = gr.Checkbox(False, label="Centred", info="the vocabulary's mean row taken off", elem_id="centre")
        special = gr.Checkbox(True, label="Without special tokens", info="such as <s> and </s>", elem_id="special")
        unused = gr.Checkbox(True, label="Without unused rows", info="rows no token has", elem_id="unused")
    with gr.Row():
        with gr.Column(scale=3, min_width=720):
            overview = gr.Dataframe(
                headers=HEADERS, label="Learned rows (click one)", elem_id="tokens", interactive=False, max_height=520,
                column_widths=[52, 410, 84, 110, 84, 70, 80], wrap=True,
            )  # fmt: skip
        with gr.Column(scale=1, min_width=280):
            neighbours = gr.Dataframe(
                headers=["rank", "token", "value"], label="Neighbours of the row", elem_id="neighbours",
                interactive=False, max_height=520, column_widths=["20%", "50%", "30%"],
            )  # fmt: skip
    word = gr.Textbox(label="Place a word on the map (Enter)", placeholder="California", elem_id="word")
    nearby = gr.Markdown(elem_id="nearby")
    plot = gr.Plot(label="Map on the vocabulary's two principal axes (zoom; click a row)", elem_id="map")
    clicked = gr.Textbox(visible="hidden", elem_id="map-pick")
    beside = gr.Column()
    with gr.Accordion("The nearest-token hard prompt: how much survives being written in words?", open=False):
        with gr.Row(equal_height=True):
            corpus = gr.Dropdown(
                ["atlas-web", "atlas-wiki", "atlas-news", "docs"], value="atlas-web", allow_custom_value=True,
                label="Corpus (test split)", elem_id="discrete-corpus",
            )  # fmt: skip
            measure = gr.Button("Measure its perplexity", elem_id="discrete", scale=0, min_width=220)
        words = gr.Textbox(label="In words", lines=2, interactive=False, elem_id="discrete-text")
        scores = gr.Dataframe(headers=["arm", "perplexity"], interactive=False, elem_id="discrete-scores")
    export.build(bench, header)
    found, picked, worths = gr.State([]), header.row, gr.State(None)

    def tabled(worths: worth.Worths | None, records: list[dict], picked: int | None, chosen: Chosen) -> dict[str, Any]:
        return table(records, picked, worth.column(worths, chosen, len(records)))

    def refresh(
        full: str, compressed: str, prompt: str | None, word: str, picked: int | None, worths: Any, *options: Any
    ) -> tuple[Any, ...]:
        if not prompt:
            return table([]), [], figures.note(520, figures.NO_PROMPT), None, {"headers": ["rank"], "data": []}
        with plain_errors():
            chosen = Chosen(full, compressed, prompt or "")
            records = rows(bench, chosen, KEPT, *options)
            row = picked if picked is not None and picked < len(records) else None
            return (
                tabled(worths, records, row, chosen),
                records,
                rowmap.map_of(bench, chosen, word, row),
                row,
                pick_row(records, row or 0),
            )

    def pick_row(records: list[dict], row: int) -> Any:
        near = records[row]["nearest"]
        data = [[rank + 1, repr(token), round(value, 4)] for rank, (token, value) in enumerate(near)]
        value = {"headers": ["rank", "token", "value"], "data": data}
        return gr.update(value=value, label=f"Neighbours of row {row}")

    def pick(
        event: gr.SelectData, records: list[dict], full: str, compressed: str, prompt: str | None, word: str
    ) -> tuple[Any, ...]:
        return picked_row(str(event.row_value[0]), records, full, compressed, prompt, word)

    def picked_row(
        which: str, records: list[dict], full: str, compressed: str, prompt: str | None, word: str
    ) -> tuple[Any, ...]:
        with plain_errors():
            row = limits.whole(which, "row", 0, max(0, len(records) - 1))
            return pick_row(records, row), row, rowmap.map_of(bench, Chosen(full, compressed, prompt or ""), word, row)

    def place(full: str, compressed: str, prompt: str | None, word: str, picked: int | None) -> tuple[Any, str]:
        with plain_errors():
            chosen = Chosen(full, compressed, prompt or "")
            figure = rowmap.map_of(bench, chosen, word, picked)
            text, ids = rowmap.inside_text(bench, chosen, word)
            if not ids:
                return figure, ""
            small = bench.model(chosen.compressed)
            own = text_rows(small.model, small.tokenizer, text, len(ids))
            near = ctp.inspect_prompt(small.model, small.tokenizer, own, own, top=SHOWN + 1)  # the first is itself
            lines = [
                f"`{small.tokenizer.decode([token])!r}` is nearest to {listed(row.nearest[1:])}"
                for token, row in zip(ids, near, strict=True)
            ]
            return figure, "\n\n".join(lines)

    def discrete(
        full: str, compressed: str, prompt: str | None, metric: str, special: bool, corpus: str
    ) -> tuple[str, dict[str, Any]]:
        with plain_errors():
            chosen = Chosen(full, compressed, prompt or "")
            small, learned, _ = bench.fitting(chosen)
            hard = ctp.nearest_hard_prompt(small.model, small.tokenizer, learned, metric=metric, drop_special=special)
            text = bench.corpus(corpus, small.tokenizer, SEQ_LEN).test
            arms = [bench.arm(name, chosen, "", 0)[0] for name in ("compressed", "soft")]
            arms.insert(1, ctp.Arm("nearest", small.model, hard))
            data = []
            for arm in arms:
                with bench.turns.turn():
                    data.append([arm.name, round(ctp.perplexity(arm, text, limit=WINDOWS).ppl, 3)])
            return small.tokenizer.decode(list(hard.ids or ())), {"headers": ["arm", "perplexity"], "data": data}

    with beside:
        worth.build(bench, header, worths, found, overview, tabled)
    options = [metric, centre, special, unused]
    outputs = [overview, found, plot, picked, neighbours]
    gr.on(
        [tab.select, *(option.input for option in options)], refresh,
        [*header.chosen, word, picked, worths, *options], outputs,
        show_progress="minimal", **DEVICE, **PRIVATE,
    )  # fmt: skip
    overview.select(
        pick, [found, *header.chosen, word], [neighbours, picked, plot], show_progress="hidden", **DEVICE, **PRIVATE
    )
    clicked.submit(
        picked_row, [clicked, found, *header.chosen, word], [neighbours, picked, plot], show_progress="hidden",
        **DEVICE, **PRIVATE,
    )  # fmt: skip
    word.submit(place, [*header.chosen, word, picked], [plot, nearby], show_progress="hidden", **DEVICE, **PRIVATE)
    measure.click(discrete, [*header.chosen, metric, special, corpus], [words, scores], **LONG, **PRIVATE)

    def nearest(
        top: int = SHOWN,
        metric: str = "cosine",
        centre: bool = False,
        drop_special: bool = True,
        drop_unused: bool = True,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
    ) -> list[dict]:
        """Nearest tokens, norm, start, that start's rank now, and drift of every learned row."""
        with plain_errors():
            chosen = bench.chosen(full, compressed, prompt)
            return rows(bench, chosen, top, metric, centre, drop_special, drop_unused)

    events.api(nearest, api_name="nearest", **DEVICE)
