"""Which weights a result was measured on, and whether they still lie where they lay."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ctplab.errors import InputError
from ctplab.formats.checkpoint import MANIFEST, read_manifest
from ctplab.runs.store import Store

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
