"""Tab *Compare*: one question, the arms' answers streaming side by side, and a closer look at them in place."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component

from ctplab.app import many, saves, views, welcome
from ctplab.app.answers import Request, answer, chats, read_text
from ctplab.app.bench import ARMS, DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.closer import look
from ctplab.app.header import Header
from ctplab.app.history import Form
from ctplab.app.share import link_of
from ctplab.app.suited import suited
from ctplab.app.toast import plain_errors
from ctplab.prompts.prefix import PAPER_HARD_PROMPT
from ctplab.text.reading import STARTS


def build(bench: Bench, header: Header) -> list[Component]:
    """Lay the tab out; returns the components that a shared link restores, in the order of ``share.LINK``."""
    usual, examples = bench.default_arms(bench.chosen()), welcome.examples(bench)
    gr.HTML(welcome.strip(bench), elem_id="welcome")
    arms = gr.CheckboxGroup(list(ARMS), value=usual, label="Arms", elem_id="arms")
    with gr.Tabs(elem_id="modes") as modes:
        with gr.Tab("One question", id="one"):
            with gr.Row(equal_height=True):
                question = gr.Textbox(
                    examples[0], label="Question (Ctrl+Enter generates)", elem_id="question", lines=2, scale=5,
                    min_width=240,
                )  # fmt: skip
                with gr.Column(scale=1, min_width=160):
                    go = gr.Button("Generate", variant="primary", elem_id="generate")
                    with gr.Row():
                        stop = gr.Button("Stop", elem_id="stop", min_width=60)
                        clear = gr.Button("Clear", elem_id="clear", min_width=60)
            gr.Examples(examples, question, label="Examples", api_visibility="private")
            with gr.Row():
                view = gr.Radio(list(views.VIEWS), value=views.TEXT, label="View", elem_id="view", scale=3,
                                min_width=280)  # fmt: skip
                of = gr.Dropdown(usual, value=usual[0], label="The text to read: question and answer of",
                                 elem_id="of", visible=False, min_width=200)  # fmt: skip
            cards = gr.HTML(views.waiting(usual), elem_id="answers")
            hint = gr.HTML("", elem_id="hint")
            share, jsonl, markdown, link = saves.build()
        with gr.Tab("Many questions", id="many"):
            mode = gr.Column()
    with gr.Accordion("Sampling, chat template and the hard prompt", open=False, elem_id="sampling"):
        with gr.Row():
            ask = gr.Checkbox(
                True, label="Ask as a question", info="Q: ... A: and one line of answer; else: continue the text"
            )
            raw = gr.Checkbox(
                False, label="Raw: no chat template", info="of a model that has one; cards show the text that was sent",
                elem_id="raw",
            )  # fmt: skip
            first = gr.Dropdown(
                list(STARTS), value="auto", label="Start token in front of the text",
                info="the same for every arm; auto: as the tokenizer does", elem_id="start", min_width=160,
            )  # fmt: skip
            length = gr.Slider(
                4,
                160,
                suited(bench, bench.chosen().full).answer,
                step=4,
                label="Longest answer (tokens)",
                elem_id="length",
            )
            temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
            penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty")
        hard = gr.Textbox(PAPER_HARD_PROMPT, label="Hard prompt (edit it)", lines=2, elem_id="hard-prompt")
    with mode:
        many.build(bench, header, arms, hard, raw, first)
    header.past.modes |= {"question": (modes, "one"), "questions": (modes, "many")}
    header.on_another_model(
        lambda name: [bench.default_arms(bench.companions(name)), suited(bench, name).answer], [arms, length]
    )
    answers, asked = gr.State([]), gr.State({})
    form: Form = {
        "question": question, "arms": arms, "hard_prompt": hard, "ask": ask, "temperature": temperature, "top_p": top_p,
        "repetition_penalty": penalty, "seed": header.seed, "max_new_tokens": length, "raw": raw, "start": first,
    }  # fmt: skip
    settings = list(form.values())

    def request_of(values: tuple[Any, ...]) -> Request:
        question, arms, hard, ask, temperature, top_p, penalty, seed, length, raw, start = values
        chosen_arms = tuple(name for name in ARMS if name in arms)
        return Request(question, chosen_arms, hard, ask, temperature, top_p, penalty, seed or 0, length, raw, start)

    def generate(
        request: gr.Request, full: str, compressed: str, prompt: str | None, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        flag, records = bench.begin(str(request.session_hash)), []
        with plain_errors():
            wanted = request_of(values)
            told = {**vars(wanted), "full": full, "compressed": compressed, "prompt": prompt or ""}
            for records in answer(bench, Chosen(full, compressed, prompt or ""), wanted, flag):
                yield views.cards(records), records, told, ""
            told["said"] = "; ".join(f"{r['arm']}: {r['text'][:40]}" for r in records if not r["error"])
            yield views.cards(records), records, told, welcome.hint(bench, full, wanted, records)

    def show(view: str, of: str, records: list[dict], told: dict[str, Any]) -> list[Any]:
        """Draw the cards in the chosen view. What is looked at is what was asked, whatever was changed since."""
        by_name = {r["arm"]: r for r in records if not r["error"]}
        looks = view in (views.SURPRISAL, views.KL)
        if view == views.TEXT or not records:
            return [views.cards(records) if records else gr.skip(), gr.update(visible=looks)]
        if view != views.SURPRISAL and "full" not in by_name:
            raise gr.Error("Tick the arm full and generate: this view is relative to it.")
        if view == views.DIFFERENCE:
            return [views.differences(records, by_name["full"]["text"]), gr.update(visible=False)]
        with plain_errors():
            if not by_name:
                raise gr.Error("No arm has answered: there is nothing to look at.")
            source = by_name.get(of) or next(iter(by_name.values()))
            names = tuple(name for name in ARMS if name in by_name)
            chosen = Chosen(told["full"], told["compressed"], told["prompt"])
            wanted = Request(**{key: told[key] for key in Request.__dataclass_fields__})
            tokenizer = bench.model(chosen.full if names[0] in ("full", "full+soft") else chosen.compressed).tokenizer
            text = read_text(replace(wanted, arms=tuple(wanted.arms)), tokenizer, source["text"])
            start = "none" if chats(wanted, tokenizer) else wanted.start  # a template has written its own
            found = look(bench, chosen, names, wanted.hard_prompt, wanted.seed, text, start=start)
        return [views.looked(records, found, view), gr.update(choices=names, value=source["arm"], visible=True)]

    def stopped(request: gr.Request) -> None:
        bench.stop(str(request.session_hash))

    def cleared(arms: list[str], request: gr.Request) -> tuple[Any, ...]:
        bench.stop(str(request.session_hash))
        return "", views.waiting(arms), [], {}, views.TEXT, gr.update(visible=False), "", gr.update(visible=False)

    look_inputs, look_outputs = [view, of, answers, asked], [cards, of]
    running = go.click(
        generate, [*header.chosen, *settings], [cards, answers, asked, hint], show_progress="minimal",
        show_progress_on=[cards], **DEVICE, **PRIVATE,
    )  # fmt: skip
    running.then(show, look_inputs, look_outputs, show_progress="hidden", **DEVICE, **PRIVATE)
    header.past.record(
        running, "question", "compare", {**form, **header.names}, lambda told: str(told["question"]), asked
    )
    gr.on([view.input, of.input], show, look_inputs, look_outputs, show_progress="hidden", **DEVICE, **PRIVATE)
    stop.click(stopped, None, None, queue=False, **PRIVATE)
    clear.click(
        cleared, arms, [question, cards, answers, asked, view, link, hint, of], queue=False, show_progress="hidden",
        **PRIVATE,
    )  # fmt: skip
    arms.input(
        lambda arms, records: gr.skip() if records else views.waiting(arms), [arms, answers], cards, queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    link_of(share, link, [*header.chosen, *settings, view])
    saves.connect(jsonl, markdown, answers, asked)
    return [*settings, view]
