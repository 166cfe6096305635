"""The whole page: header and tabs."""

from dataclasses import replace
from typing import Any

import gradio as gr

from ctplab.app import api, compare, compress, header, latency, results, share, similarity, tokens, train
from ctplab.app.bench import PRIVATE, Bench, Chosen

TABS = {
    "Prompt tokens": tokens.build,
    "Similarity": similarity.build,
    "Compress": compress.build,
    "Train": train.build,
    "Results": results.build,
    "Latency": latency.build,
}
NAMES = ["compare", *(title.lower().replace(" ", "-") for title in TABS)]
#: A reload returns to the tab one was in, unless a link names settings of its own.
REMEMBERED = "() => location.search ? '' : sessionStorage.getItem('ctplab-tab') || ''"


def build(bench: Bench) -> gr.Blocks:
    """All tabs over one bench."""
    with gr.Blocks(title="ctplab", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            "# ctplab\nWhat compression costs a language model, and what a soft prompt brings back.", elem_id="title"
        )
        head = header.build(bench)

        def runnable(full: str, compressed: str, prompt: str | None) -> list[str]:
            return bench.default_arms(Chosen(full, compressed, prompt or ""))

        with gr.Tabs(elem_id="tabs") as tabs:
            head = replace(head, tabs=tabs)
            with gr.Tab("Compare", id="compare"):
                restored = compare.build(bench, head)
            for title, build_tab in TABS.items():
                with gr.Tab(title, id=title.lower().replace(" ", "-")) as tab:
                    build_tab(bench, head, tab)
        for event in head.uses:
            event.success(runnable, head.chosen, restored[1], show_progress="hidden", queue=False, **PRIVATE)
        head.past.lay_out(page, bench, tabs)
        api.build(bench)

        def opened(request: gr.Request) -> list[Any]:
            query = dict(request.query_params)
            full, compressed, prompt = (query.get(name, "") for name in ("full", "compressed", "prompt"))
            known = (
                full if full in bench.models else "",
                compressed if compressed in bench.models else "",
                prompt if prompt in bench.prompts else "",
            )
            return [*share.restore(query), *header.renew(bench, *known)]

        def closed(request: gr.Request) -> None:
            for what in ("", "latency ", "worth ", "api ", "latency api ", "worth api "):
                bench.stop(f"{what}{request.session_hash}")

        def reopened(tab: str) -> Any:
            return gr.Tabs(selected=tab) if tab in NAMES and tab != "compare" else gr.skip()

        place = gr.Textbox(visible=False)
        page.load(reopened, place, tabs, js=REMEMBERED, show_progress="hidden", queue=False, **PRIVATE)
        page.load(opened, None, [*restored, *head.chosen], show_progress="hidden", queue=False, **PRIVATE).then(
            None, None, None, js=share.RUN, **PRIVATE
        )
        page.unload(closed)
    return page
