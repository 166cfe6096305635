"""Tab *Results*: models that ``ctplab tune`` or *Train* made, finished or not. Reads files; measures nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

import ctplab as ctp
from ctplab import tensor_files
from ctplab.app import curves, figures
from ctplab.app.bench import PRIVATE, Bench
from ctplab.app.views import size
from ctplab.app.ways import words
from ctplab.disk import read_json
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.tuned import SOFT

STATE = ".state.safetensors"  # what a file ends in that lies beside the folder to come
PLACES = ("*/", "*/*/", "*/*/*/", "*/*/tuned/*/")
KIND = {"scale": "scales", "norm": "norms", "left": "low-rank", "code": "codes", "value": "codes", "E": SOFT}
"""What a learned tensor's name begins with -> what is learned."""
MOST = 100  # that are listed, newest first
CELLS = ["model", "learned", "rate", "steps", "best at", "validation NLL", "gap closed there", "bytes"]
LIMITS = (
    "The gap is that of the validation windows, which also choose the best step: `ctplab recover --tuned` measures on "
    "text that nothing chose. It is known for what the tab *Train* learned."
)


def _manifests(bench: Bench) -> Iterator[Path]:
    """Manifests in the run folder, and of models that are loaded from elsewhere."""
    for place in PLACES:
        yield from bench.runs.glob(place + MANIFEST)
    for loaded in bench.models.values():
        if (path := Path(loaded.source) / MANIFEST).exists():
            yield path


def found(bench: Bench) -> dict[str, dict[str, Any]]:
    """Name -> what was learned and how, newest first; what cannot be read is left out."""
    paths = {path.resolve(): path for path in _manifests(bench)}
    paths |= {path.resolve(): path for place in PLACES for path in bench.runs.glob(f"{place.removesuffix('/')}{STATE}")}
    kept = dict[str, dict[str, Any]]()
    for path in sorted(paths.values(), key=lambda path: -path.stat().st_mtime):
        try:
            about = _unfinished(path) if path.name.endswith(STATE) else _finished(path)
        except (ctp.InputError, OSError, KeyError, TypeError):
            continue
        if about is not None and len(kept) < MOST:
            folder = path.with_name(path.name.removesuffix(STATE)) if path.name.endswith(STATE) else path.parent
            kept[str(folder.relative_to(bench.runs)) if folder.is_relative_to(bench.runs) else str(folder)] = about
    return kept


def _finished(path: Path) -> dict[str, Any] | None:
    """What a manifest says of tuning; None if nothing was tuned."""
    manifest = read_json(path, finite=False)
    tuned = manifest.get("tuned")
    return tuned and {"state": "finished", "bytes": manifest["bytes"], "tag": manifest["tag"], **tuned}


def _unfinished(path: Path) -> dict[str, Any] | None:
    """The live record of a model that is still being tuned, or was interrupted; None if it is finished."""
    folder = path.with_name(path.name.removesuffix(STATE))
    if (folder / MANIFEST).exists():
        return None
    about, names = tensor_files.told(path), tensor_files.shapes(path)
    record, learned = about["record"], {name.split(":")[0].removeprefix("now.") for name in names if "now." in name}
    what = [KIND[kind] for kind in KIND if kind in learned]
    if not set(what) - {SOFT}:
        return None
    return {
        "state": "unfinished", "what": what, "spec": about["identity"]["recipe"], "steps": record["step"],
        "curve": record["curve"], "best_step": record["best_step"], "validation_before": record["before"],
    }  # fmt: skip


def points(about: dict[str, Any]) -> list[curves.Point]:
    """The learning curve."""
    return [(step["step"], step["loss"], step["validation"]) for step in about.get("curve", [])]


def baselines(about: dict[str, Any]) -> dict[str, float]:
    """NLL a token on the validation windows: of both models if known, else before the first step."""
    before = about.get("validation_before")
    return about.get("validation_baselines") or ({} if before is None else {"before": before})


def share(about: dict[str, Any]) -> str:
    """The share of the validation gap that is closed, if it is known."""
    closed = curves.recovery(points(about), baselines(about))
    return "not measured" if closed is None else f"{100 * closed:.0f}%"


def row(name: str, about: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "spec" not in about:  # carried over from another model
        return [name, words(about["what"]), "", "", "", "", "", size(about["bytes"])]
    values = [value for _, _, value in points(about) if value is not None]
    start = about.get("validation_before")
    reached = f"{min(values):.3f}" if values else "?"
    return [
        name, words(about["what"]), f"{about['spec']['lr']:g}", f"{about['steps']} of {about['spec']['steps']}",
        str(about["best_step"]), reached if start is None else f"{start:.3f} → {reached}", share(about),
        size(about["bytes"]) if "bytes" in about else "",
    ]  # fmt: skip


def told(name: str, about: dict[str, Any]) -> str:
    """One model in a sentence."""
    if "spec" not in about:
        return f"**{name}** ({about['tag']}): {words(about['what'])} of `{about['like']}` on `{about['from']}`."
    spec, steps = about["spec"], f"{about['steps']} steps of {about['spec']['steps']}"
    if about["state"] == "unfinished":
        return f"**{name}**: {steps} until its last validation, at a rate of {spec['lr']:g}; the same command goes on."
    text = about["corpus"] if isinstance(about.get("corpus"), str) else "a text"
    return (
        f"**{name}** ({about['tag']}): {words(about['what'])} learned on {text}, {steps} at a rate of {spec['lr']:g}, "
        f"best at step {about['best_step']}."
    )


def drawn(about: dict[str, Any]) -> go.Figure:
    """The learning curve."""
    if not points(about):
        return figures.note(curves.HEIGHT, "Carried over from another model: there is no curve.")
    return curves.curves(points(about), baselines(about), about["steps"])


def build(bench: Bench, tab: gr.Tab) -> None:
    """Lay the part out inside the current ``gr.Blocks``; hidden while there are no such models."""
    with gr.Column(visible=False) as box:
        gr.Markdown("### Tuned models")
        rows = gr.Dataframe(headers=CELLS, label="Tuned models (click one for its curve)", elem_id="tuned-rows",
                            interactive=False, wrap=True)  # fmt: skip
        said = gr.Markdown(elem_id="tuned-told")
        plot = gr.Plot(label="Validation and objective", elem_id="tuned-curve")
        gr.Markdown(LIMITS)
    shown = gr.State(None)

    def refresh(chosen: str | None) -> list[Any]:
        models = found(bench)
        if not models:
            return [gr.update(visible=False), *[gr.skip()] * 3]
        name = chosen if chosen in models else next(iter(models))
        table = {"headers": CELLS, "data": [row(each, about) for each, about in models.items()]}
        return [gr.update(visible=True), table, told(name, models[name]), drawn(models[name])]

    def pick(event: gr.SelectData) -> list[Any]:
        name = str(event.row_value[0])
        about = found(bench).get(name)
        return [gr.skip()] * 3 if about is None else [name, told(name, about), drawn(about)]

    how = {"show_progress": "hidden", "queue": False, **PRIVATE}
    tab.select(refresh, shown, [box, rows, said, plot], **how)
    rows.select(pick, None, [shown, said, plot], **how)
