"""What was asked in this browser: kept there, not on the server, and asked again with a click."""

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr

KEPT = 100
SETTINGS = (
    "question", "arms", "hard_prompt", "ask", "temperature", "top_p", "repetition_penalty", "seed", "max_new_tokens",
    "raw", "start",
)  # fmt: skip
"""Of a request, in the order of the components that ``compare.build`` returns."""


@dataclass(frozen=True)
class Past:
    """The component that the browser keeps, and its table."""

    kept: gr.BrowserState
    table: gr.Dataframe


def build() -> Past:
    """Lay the list out inside the current ``gr.Blocks``."""
    kept = gr.BrowserState([], storage_key="ctplab-asked")
    with gr.Accordion("History: what you asked in this browser", open=False, elem_id="history"):
        table = gr.Dataframe(
            headers=["when", "question", "compressed", "prompt", "answers"], interactive=False, wrap=True,
            label="Click a row to set everything as it was; then Generate", elem_id="past", max_height=300,
        )  # fmt: skip
    return Past(kept, table)


def shown(past: Any) -> dict[str, Any]:
    """The list as a Dataframe value, newest first."""
    rows = [[e.get(key, "") for key in ("when", "question", "compressed", "prompt", "said")] for e in _entries(past)]
    return {"headers": ["when", "question", "compressed", "prompt", "answers"], "data": rows}


def _entries(past: Any) -> list[dict[str, Any]]:
    """The entries that can be used: a browser's storage can hold anything."""
    return [e for e in past if isinstance(e, dict) and isinstance(e.get("question"), str)] if past else []


def add(past: Any, records: list[dict[str, Any]], told: dict[str, Any]) -> tuple[Any, Any]:
    """Put what was just asked in front."""
    if not records:
        return gr.skip(), gr.skip()
    said = "; ".join(f"{r['arm']}: {r['text'][:40]}" for r in records if not r["error"])
    entry = {**told, "arms": list(told["arms"]), "when": time.strftime("%d %b %H:%M"), "said": said}
    kept = [entry, *_entries(past)][:KEPT]
    return kept, shown(kept)


def restore(event: gr.SelectData, past: Any) -> list[Any]:
    """The settings of the clicked row."""
    entries = _entries(past)
    row = event.index[0]
    if not 0 <= row < len(entries):
        return [gr.skip() for _ in SETTINGS]
    return [entries[row].get(name, gr.skip()) for name in SETTINGS]
