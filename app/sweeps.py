"""The lower half of the tab *Results*: what ``ctplab sweep`` found. Reads its files; measures nothing."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from ctplab.app.bench import PRIVATE, Bench
from ctplab.runs import store
from ctplab.runs.stale import stale
from ctplab.show.tables import sweep_cells


def found_sweeps(runs: Path) -> list[str]:
    """Names of sweeps that kept something, newest first."""
    kept = sorted(store.sweeps(runs).glob("*.json"), key=lambda path: -path.stat().st_mtime)
    return [path.stem for path in kept]


def read(runs: Path, name: str) -> dict[str, Any] | None:
    """One sweep's rows as a table; None if the file is missing or damaged."""
    try:
        kept = json.loads(store.sweep(runs, name).read_text())
        headers, data = sweep_cells(kept["rows"])
        when = store.sweep(runs, name).stat().st_mtime
        for row, cells in zip(kept["rows"], data, strict=True):
            made = row.get("weights")
            if made and (reason := stale(runs / made["folder"], made["id"], when)):
                cells[1] = f"⚠ {cells[1]} ({reason})"
        return {**kept, "table": {"headers": headers, "data": data}}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(kept: dict[str, Any]) -> str:
    """The grid, and what failed."""
    failed = [f"- {cell}: {error}" for cell, error in kept["failed"].items()]
    return "\n".join([f"**{kept['name']}**: {kept['grid']}." + (" Failed:\n" if failed else ""), *failed])


def build(bench: Bench, tab: gr.Tab) -> None:
    """Lay the half tab out inside the current ``gr.Blocks``; hidden while there are no sweeps."""
    with gr.Column(visible=False) as box:
        name = gr.Dropdown([], label="Sweep", elem_id="sweep")
        told = gr.Markdown(elem_id="sweep-told")
        rows = gr.Dataframe(label="Perplexity and recovery", elem_id="sweep-rows", interactive=False, wrap=True)

    def refresh(chosen: str | None) -> list[Any]:
        names = found_sweeps(bench.runs)
        chosen = chosen if chosen in names else (names[0] if names else None)
        kept = read(bench.runs, chosen) if chosen else None
        if kept is None:
            return [gr.update(visible=False), gr.skip(), gr.skip(), gr.skip()]
        return [gr.update(visible=True), gr.update(choices=names, value=chosen), in_words(kept), kept["table"]]

    gr.on(
        [tab.select, name.input], refresh, [name], [box, name, told, rows],
        show_progress="hidden", queue=False, **PRIVATE,
    )  # fmt: skip
