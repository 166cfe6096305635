"""The whole page: header and tabs."""

from typing import Any

import gradio as gr

from ctplab.app import api, compare, compress, header, latency, results, share, similarity, tokens, train
from ctplab.app.bench import PRIVATE, Bench

TABS = {
    "Prompt tokens": tokens.build,
    "Similarity": similarity.build,
    "Compress": compress.build,
    "Train": train.build,
    "Results": results.build,
    "Latency": latency.build,
}


def build(bench: Bench) -> gr.Blocks:
    """All tabs over one bench."""
    with gr.Blocks(title="ctplab", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            "# ctplab\nWhat compression costs a language model, and what a soft prompt brings back.", elem_id="title"
        )
        head = header.build(bench)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Compare", id="compare"):
                restored = compare.build(bench, head)
            for title, build_tab in TABS.items():
                with gr.Tab(title, id=title.lower().replace(" ", "-")) as tab:
                    build_tab(bench, head, tab)
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
            for what in ("", "latency ", "api ", "latency api "):
                bench.stop(f"{what}{request.session_hash}")

        page.load(opened, None, [*restored, *head.chosen], show_progress="hidden", queue=False, **PRIVATE)
        page.unload(closed)
    return page
