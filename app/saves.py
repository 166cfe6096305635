"""The row below the answers: a link to the settings, and the answers as files."""

import json
from typing import Any

import gradio as gr

from ctplab.app import views
from ctplab.app.share import download


def build() -> tuple[gr.Button, gr.Button, gr.Button, gr.Textbox]:
    """Lay the row out: (share, JSONL, Markdown, link)."""
    with gr.Row():
        share = gr.Button("Share link", elem_id="share", min_width=120)
        as_jsonl = gr.Button("Download JSONL", elem_id="as-jsonl", min_width=120)
        as_markdown = gr.Button("Download Markdown", elem_id="as-markdown", min_width=120)
    link = gr.Textbox(label="Link to these settings", visible=False, buttons=["copy"], elem_id="link")
    return share, as_jsonl, as_markdown, link


def settings_of(told: dict[str, Any]) -> dict[str, Any]:
    """What a reader of a file needs to ask the same again."""
    return {name: value for name, value in told.items() if name not in ("question", "arms", "said")}


def connect(as_jsonl: gr.Button, as_markdown: gr.Button, answers: gr.State, asked: gr.State) -> None:
    """Let the buttons save the answers with the settings that made them."""

    def jsonl(records: list[dict], told: dict[str, Any]) -> dict[str, str]:
        if not records:
            raise gr.Error("Nothing to download yet: generate first.")
        about = {"question": told["question"], "settings": settings_of(told)}
        lines = "".join(json.dumps({**about, **record}, ensure_ascii=False) + "\n" for record in records)
        return {"name": "answers.jsonl", "type": "application/jsonl", "text": lines}

    def markdown(records: list[dict], told: dict[str, Any]) -> dict[str, str]:
        if not records:
            raise gr.Error("Nothing to download yet: generate first.")
        text = views.markdown(told["question"], records, settings_of(told))
        return {"name": "answers.md", "type": "text/markdown", "text": text}

    download(as_jsonl, jsonl, [answers, asked])
    download(as_markdown, markdown, [answers, asked])
