"""What was done in this browser: kept there and not on the server, whose users see nothing of each other's lists.

A click on an entry sets its tab's form as it was. Runs themselves lie on disk (``recipes.py`` offers their settings).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from ctplab.app.bench import PRIVATE, Bench
from ctplab.app.share import SHOW_TAB

KEPT = 100  # entries
LARGEST = 50_000  # characters of an entry: browsers keep about 5 MB
SECRET = "kept in the reader's own browser"  # a random one would lose the list when the server ends
HEADERS = ["when", "what", "settings", "compressed", "prompt", "answers"]
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}

Form = dict[str, Component]
"""Setting -> the component that holds it."""


@dataclass
class Past:
    """The list, and the forms that its entries fill. Tabs add theirs while the page is laid out."""

    kept: gr.BrowserState
    table: gr.Dataframe
    forms: dict[str, tuple[str, Form]] = field(default_factory=dict)
    """Kind of work -> (tab, form)."""
    modes: dict[str, tuple[gr.Tabs, str]] = field(default_factory=dict)
    """Kind of work -> tabs inside its tab, and the one that is its own."""

    def record(
        self, event: Any, kind: str, tab: str, form: Form, title: Callable[[dict[str, Any]], str],
        told: gr.State | None = None,
    ) -> None:  # fmt: skip
        """Put what ``event`` did in front of the list, once it has succeeded.

        ``title``: settings -> words for the list. ``told``: the settings as they were when the work began, for work
        that lasts; it may hold ``said``, what came of it.
        """
        self.forms[kind] = (tab, form)

        def add(past: Any, *values: Any) -> tuple[Any, Any]:
            settings = dict(values[0] or {}) if told is not None else dict(zip(form, values, strict=True))
            if not settings:
                return gr.skip(), gr.skip()
            said = settings.pop("said", "")
            entry = {"when": time.strftime("%d %b %H:%M"), "kind": kind, "title": title(settings), "said": said}
            entry["settings"] = {name: settings[name] for name in form if name in settings}
            if len(json.dumps(entry)) > LARGEST:  # a long list of questions
                long = max(entry["settings"], key=lambda name: len(str(entry["settings"][name])))
                del entry["settings"][long]
                entry["title"] += f" ({long} is too long to be kept: give it again)"
            kept = [entry, *_entries(past)][:KEPT]
            return kept, shown(kept)

        inputs = [told] if told is not None else list(form.values())
        event.success(add, [self.kept, *inputs], [self.kept, self.table], **QUIET)

    def lay_out(self, page: gr.Blocks, bench: Bench, tabs: gr.Tabs) -> None:
        """Show the list below the tabs, and let a click on an entry fill its form."""
        with gr.Accordion("History: what you did in this browser", open=False, elem_id="history"):
            self.table.render()
            forget = gr.Button("Forget all", elem_id="forget", size="sm")
        outputs = list(dict.fromkeys(part for _, form in self.forms.values() for part in form.values()))
        place = gr.Textbox(visible=False)

        def restore(event: gr.SelectData, past: Any) -> list[Any]:
            entries = _entries(past)
            at = event.index[0]
            found = self.filled(entries[at], bench) if 0 <= at < len(entries) else {}
            kind = entries[at]["kind"] if found else ""
            tab = self.forms[kind][0] if kind else ""
            inner = [gr.Tabs(selected=own) if name == kind else gr.skip() for name, (_, own) in self.modes.items()]
            return [*(found.get(part, gr.skip()) for part in outputs), *inner, tab,
                    gr.Tabs(selected=tab) if tab else gr.skip()]  # fmt: skip

        self.table.select(
            restore, self.kept, [*outputs, *(inner for inner, _ in self.modes.values()), place, tabs], **QUIET
        ).then(None, place, None, js=SHOW_TAB, **PRIVATE)
        forget.click(lambda: ([], shown([])), None, [self.kept, self.table], **QUIET)
        page.load(shown, self.kept, self.table, **QUIET)

    def filled(self, entry: dict[str, Any], bench: Bench) -> dict[Component, Any]:
        """Component -> value for an entry. Models and prompts that are not loaded now stay as they are, with a word."""
        form, settings = self.forms.get(entry["kind"], ("", {}))[1], dict(entry["settings"])
        known = {"full": bench.models, "compressed": bench.models, "prompt": bench.prompts}
        for name in [name for name in known if settings.get(name) and settings[name] not in known[name]]:
            gr.Warning(f"{settings.pop(name)} is not loaded now: load it at the top of the page.")
        return {form[name]: value for name, value in settings.items() if name in form and value is not None}


def build() -> Past:
    """The list, which is laid out later, below the tabs."""
    table = gr.Dataframe(
        headers=HEADERS, interactive=False, wrap=True, elem_id="past", max_height=300, render=False,
        label="Click an entry: its form is set as it was; then start it again",
        column_widths=[110, 130, 320, 130, 130, 320],
    )  # fmt: skip
    return Past(gr.BrowserState([], storage_key="ctplab-history", secret=SECRET), table)


def _entries(past: Any) -> list[dict[str, Any]]:
    """The entries that can be used: a browser's storage can hold anything."""
    found = [e for e in (past if isinstance(past, list) else []) if isinstance(e, dict)]
    words = ("when", "kind", "title", "said")
    return [e for e in found if isinstance(e.get("settings"), dict) and all(isinstance(e.get(w), str) for w in words)]


def shown(past: Any) -> dict[str, Any]:
    """The list as a Dataframe value, newest first."""
    rows = [
        [
            e["when"],
            e["kind"],
            e["title"],
            *(str(e["settings"].get(n) or "") for n in ("compressed", "prompt")),
            e["said"],
        ]
        for e in _entries(past)
    ]
    return {"headers": HEADERS, "data": rows}
