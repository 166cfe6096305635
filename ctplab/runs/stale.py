"""Which weights a result was measured on, and whether they still lie where they lay."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ctplab.disk import write_text
from ctplab.errors import InputError
from ctplab.formats.checkpoint import MANIFEST, read_manifest
from ctplab.runs.store import Store

MARK = "> **Stale.** "
GONE, CHANGED = "its weights are gone", "its weights were made anew since"


def weights_id(manifest: dict[str, Any]) -> str:
    """8 hex digits that change with the recipe, the calibration and what came of them in every layer."""
    parts = ("spec", "calibration", "base_fingerprint", "bytes", "layers")
    what = json.dumps([manifest.get(part) for part in parts], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:8]


def stale(folder: Path, made: str | None, when: float) -> str | None:
    """Why a result on the weights in ``folder`` cannot be repeated there; None if it can.

    ``made``: their :func:`weights_id` then; ``when``: the time of the result, which decides for results that hold none.
    """
    try:
        manifest = read_manifest(folder)
    except InputError:
        return GONE
    if made is None:
        return CHANGED if (folder / MANIFEST).stat().st_mtime > when else None
    return None if weights_id(manifest) == made else CHANGED


def stale_levels(root: Path, name: str, report: dict[str, Any]) -> dict[str, str]:
    """Level -> why its results cannot be repeated, for the levels of a demo's report on the model called ``name``."""
    store = Store(root, name)
    path = store.report() / "demo.json"
    when = path.stat().st_mtime if path.exists() else 0.0
    found = {
        tag: stale(store.compressed(level.get("folder", tag)), level.get("weights"), when)
        for tag, level in report["levels"].items()
        if tag != "full"
    }
    return {tag: reason for tag, reason in found.items() if reason}


def mark_report(root: Path, name: str) -> dict[str, str]:
    """Say at the top of ``report.md`` which levels are stale, and no longer what no longer holds.

    Returns what :func:`stale_levels` finds; nothing if there is no readable report.
    """
    folder = Store(root, name).report()
    path = folder / "report.md"
    try:
        result = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        text = path.read_text(encoding="utf-8")
        found = stale_levels(root, name, result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    title, *rest = [part for part in text.split("\n\n") if not part.startswith(MARK)]
    told = "; ".join(f"{tag}: {reason}" for tag, reason in found.items())
    marks = [f"{MARK}{told}. Run `ctplab demo` again for numbers on the weights that lie there now."] if found else []
    marked = "\n\n".join([title, *marks, *rest])
    if marked != text:
        write_text(marked, path)
    return found
