"""Tab *Compare*: one question, the arms' answers streaming side by side, and a closer look at them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ctplab.app import views
from ctplab.app.answers import Request, answer, chats, read_text
from ctplab.app.bench import ARMS, DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.closer import alternatives, look
from ctplab.app.header import Header
from ctplab.app.share import LINK, download
from ctplab.app.toast import plain_errors
from ctplab.prompts.arms import USUAL
from ctplab.prompts.prefix import PAPER_HARD_PROMPT

EXAMPLES = [
    "Where is Long Beach?",
    "Where is Tulsa?",
    "What is asparagus?",
    "What is the capital of Peru?",
    "Where does the Weser River end?",
]
TEXT, DIFFERENCE, SURPRISAL, KL = "Text", "Difference from full", "Surprisal", "KL to full"
VIEWS = (TEXT, DIFFERENCE, SURPRISAL, KL)


def api(bench: Bench) -> None:
    """The endpoints ``/compare`` and ``/lens`` for ``gradio_client``."""

    def compare(
        question: str,
        arms: list[str] = list(USUAL),  # noqa: B006 (gradio reads the default from here)
        hard_prompt: str = PAPER_HARD_PROMPT,
        max_new_tokens: int = 24,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        ask: bool = True,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
        raw: bool = False,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[list[dict]]:
        """All arms' answers in lockstep: a list of records, again and again until complete."""
        stop = bench.begin(f"api {request.session_hash}")
        with plain_errors():
            chosen = bench.chosen(full, compressed, prompt)
            wanted = Request(
                question,
                tuple(arms),
                hard_prompt,
                ask,
                temperature,
                top_p,
                repetition_penalty,
                seed,
                max_new_tokens,
                raw,
            )
            yield from answer(bench, chosen, wanted, stop, period=0.0)

    def lens_api(
        text: str,
        arms: list[str] = list(USUAL),  # noqa: B006
        hard_prompt: str = PAPER_HARD_PROMPT,
        top: int = 10,
        seed: int = 0,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
    ) -> dict:
        """Surprisal, KL to the full model and the likeliest alternatives of every token of ``text``, arm by arm."""
        with plain_errors():
            return look(bench, bench.chosen(full, compressed, prompt), tuple(arms), hard_prompt, seed, text, top)

    gr.api(compare, api_name="compare", **DEVICE)
    gr.api(lens_api, api_name="lens", **DEVICE)


def build(bench: Bench, header: Header) -> list[gr.components.Component]:
    """Lay the tab out; returns the components that a shared link restores, in the order of :func:`restore`."""
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            EXAMPLES[0], label="Question (Ctrl+Enter generates)", elem_id="question", lines=2, scale=5, min_width=240
        )
        with gr.Column(scale=1, min_width=160):
            go = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Row():
                stop = gr.Button("Stop", elem_id="stop", min_width=60)
                clear = gr.Button("Clear", elem_id="clear", min_width=60)
    gr.Examples(EXAMPLES, question, label="Examples (the first three are the paper's)", api_visibility="private")
    with gr.Row():
        arms = gr.CheckboxGroup(list(ARMS), value=list(USUAL), label="Arms", elem_id="arms", scale=3, min_width=300)
        view = gr.Radio(list(VIEWS), value=TEXT, label="View", elem_id="view", scale=2, min_width=280)
    cards = gr.HTML(views.waiting(list(USUAL)), elem_id="answers")
    answers = gr.State([])
    asked = gr.State("")

    with gr.Column(visible=False, elem_id="differences") as differences:
        changed = [
            gr.HighlightedText(
                label=name, color_map=views.difference_colours(name), show_legend=True, show_inline_category=False,
                visible=False, elem_id=f"difference-{name}",
            )
            for name in ARMS
        ]  # fmt: skip
    with gr.Column(visible=False, elem_id="lens") as lens_box:
        of = gr.Dropdown(list(USUAL), value="full", label="The text to read: question and answer of", elem_id="of")
        lit = [
            gr.HighlightedText(
                label=name, color_map=views.SCORE_COLOURS, show_legend=i == 0, show_inline_category=False,
                visible=False, elem_id=f"lens-{name}",
            )
            for i, name in enumerate(ARMS)
        ]  # fmt: skip
        gr.Markdown("Click a token: what every arm expected there.", elem_classes="hint")
        table = gr.Dataframe(
            headers=["rank", *USUAL], label="Likeliest tokens", interactive=False, elem_id="alternatives"
        )
    seen = gr.State(None)

    with gr.Accordion("Sampling and the hard prompt", open=False, elem_id="sampling"):
        with gr.Row():
            ask = gr.Checkbox(
                True, label="Ask as a question", info="Q: ... A: and one line of answer; else: continue the text"
            )
            length = gr.Slider(4, 160, 24, step=4, label="Longest answer (tokens)", elem_id="length")
            temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
            penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty")
        hard = gr.Textbox(PAPER_HARD_PROMPT, label="Hard prompt (edit it)", lines=2, elem_id="hard-prompt")
    with gr.Row():
        share = gr.Button("Share link", elem_id="share", min_width=120)
        as_jsonl = gr.Button("Download JSONL", elem_id="as-jsonl", min_width=120)
        as_markdown = gr.Button("Download Markdown", elem_id="as-markdown", min_width=120)
    link = gr.Textbox(label="Link to these settings", visible=False, buttons=["copy"], elem_id="link")

    settings = [question, arms, hard, ask, temperature, top_p, penalty, header.seed, length]

    def request_of(values: tuple[Any, ...]) -> Request:
        question, arms, hard, ask, temperature, top_p, penalty, seed, length = values
        chosen_arms = tuple(name for name in ARMS if name in arms)
        return Request(question, chosen_arms, hard, ask, temperature, top_p, penalty, int(seed or 0), int(length))

    def generate(
        request: gr.Request, full: str, compressed: str, prompt: str | None, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        flag = bench.begin(str(request.session_hash))
        shown = gr.update(visible=True), gr.update(visible=False), gr.update(visible=False)
        with plain_errors():
            wanted = request_of(values)
            for records in answer(bench, Chosen(full, compressed, prompt or ""), wanted, flag):
                yield gr.update(value=views.cards(records), visible=True), records, wanted.question, *shown[1:]
        for record in records:
            if record["error"]:
                gr.Warning(f"{record['arm']}: {record['error']}", duration=12)

    def show(
        view: str,
        of: str,
        records: list[dict],
        asked: str,
        full: str,
        compressed: str,
        prompt: str | None,
        *values: Any,
    ) -> list[Any]:
        """Fill the chosen view; the others are hidden and empty."""
        by_name = {r["arm"]: r for r in records if not r["error"]}
        nothing = [gr.update(visible=False, value=None)] * len(ARMS)
        if view == TEXT or not records:
            return [gr.update(visible=True), gr.update(visible=False), gr.update(visible=False), *nothing, *nothing,
                    gr.skip(), None, gr.skip()]  # fmt: skip
        if view == DIFFERENCE:
            if "full" not in by_name:
                raise gr.Error("Tick the arm full and generate: differences are from its answer.")
            reference = by_name["full"]["text"]
            spans = [
                gr.update(value=views.difference(reference, by_name[n]["text"]), visible=True) if n in by_name else
                nothing[0] for n in ARMS
            ]  # fmt: skip
            return [gr.update(visible=False), gr.update(visible=True), gr.update(visible=False), *spans, *nothing,
                    gr.skip(), None, gr.skip()]  # fmt: skip
        with plain_errors():
            wanted = request_of(values)
            if not by_name:
                raise gr.Error("No arm has answered: there is nothing to look at.")
            source = by_name.get(of) or next(iter(by_name.values()))
            names = tuple(name for name in ARMS if name in by_name)
            tokenizer = bench.model(full if names[0] in ("full", "full+soft") else compressed).tokenizer
            text = read_text(replace(wanted, question=asked), tokenizer, source["text"])
            start = "none" if chats(wanted, tokenizer) else "auto"  # a template has written its own
            chosen = Chosen(full, compressed, prompt or "")
            found = look(bench, chosen, names, wanted.hard_prompt, wanted.seed, text, start=start)
            if view == KL and "full" not in names:
                raise gr.Error("Tick the arm full and generate: the KL is to its predictions.")
        key = "kl" if view == KL else "surprisal"
        spans = [
            gr.update(value=views.scored(found["tokens"], found["arms"][n][key]), visible=True) if n in names else
            nothing[0] for n in ARMS
        ]  # fmt: skip
        choice = gr.update(choices=list(names), value=source["arm"])
        last = alternatives(found, len(found["tokens"]) - 1)
        return [gr.update(visible=False), gr.update(visible=False), gr.update(visible=True), *nothing, *spans,
                choice, found, last]  # fmt: skip

    def pick(seen: dict | None, event: gr.SelectData) -> dict[str, Any]:
        place = event.index[0] if isinstance(event.index, list | tuple) else event.index
        return alternatives(seen, int(place))

    def stopped(request: gr.Request) -> None:
        bench.stop(str(request.session_hash))

    def cleared(arms: list[str], request: gr.Request) -> tuple[Any, ...]:
        bench.stop(str(request.session_hash))
        return "", gr.update(value=views.waiting(arms), visible=True), [], "", TEXT, gr.update(visible=False)

    def shared(full: str, compressed: str, prompt: str | None, *values: Any) -> Any:
        found = dict(zip(LINK, values, strict=True)) | {"arms": ",".join(values[1]), "ask": int(values[3])}
        found |= {"full": full, "compressed": compressed, "prompt": prompt or ""}
        return gr.update(value="?" + urlencode(found), visible=True)

    def jsonl(records: list[dict], asked: str) -> dict[str, str]:
        if not records:
            raise gr.Error("Nothing to download yet: generate first.")
        lines = "".join(json.dumps({"question": asked, **record}) + "\n" for record in records)
        return {"name": "answers.jsonl", "type": "application/jsonl", "text": lines}

    def as_table(records: list[dict], asked: str) -> dict[str, str]:
        if not records:
            raise gr.Error("Nothing to download yet: generate first.")
        return {"name": "answers.md", "type": "text/markdown", "text": views.markdown(asked, records)}

    look_inputs = [view, of, answers, asked, *header.chosen, *settings]
    look_outputs = [cards, differences, lens_box, *changed, *lit, of, seen, table]
    running = go.click(
        generate, [*header.chosen, *settings], [cards, answers, asked, differences, lens_box], show_progress="minimal",
        show_progress_on=[cards], **DEVICE, **PRIVATE,
    )  # fmt: skip
    running.then(show, look_inputs, look_outputs, show_progress="hidden", **DEVICE, **PRIVATE)
    view.input(show, look_inputs, look_outputs, show_progress="hidden", **DEVICE, **PRIVATE)
    of.input(show, look_inputs, look_outputs, show_progress="hidden", **DEVICE, **PRIVATE)
    for strip in lit:
        strip.select(pick, seen, table, queue=False, show_progress="hidden", **PRIVATE)
    stop.click(stopped, None, None, queue=False, **PRIVATE)
    clear.click(
        cleared, arms, [question, cards, answers, asked, view, link], queue=False, show_progress="hidden", **PRIVATE
    ).then(show, look_inputs, look_outputs, show_progress="hidden", queue=False, **PRIVATE)
    arms.input(
        lambda arms, records: gr.skip() if records else views.waiting(arms), [arms, answers], cards, queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    share.click(shared, [*header.chosen, *settings], link, queue=False, **PRIVATE).then(
        None, link, link, js="(query) => location.origin + location.pathname + query", **PRIVATE
    )
    download(as_jsonl, jsonl, [answers, asked])
    download(as_markdown, as_table, [answers, asked])
    return settings
