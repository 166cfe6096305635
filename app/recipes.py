"""Settings of earlier compressions and trainings, read from the run folder, so that a form can take them again."""

from pathlib import Path
from typing import Any

import gradio as gr

import ctplab as ctp
from ctplab.disk import read_json
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.tuned import SOFT

BESIDE = ".recipe.json"  # what a recipe's name ends in, beside the folder that it is of
MOST = 100  # that a list offers, newest first


def _found(runs: Path, *patterns: str) -> dict[str, dict[str, Any]]:
    """Folder -> recipe, newest first; what cannot be read is left out."""
    found = {}
    paths = [path for pattern in patterns for path in runs.glob(pattern)]
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime)[:MOST]:
        folder = path.with_name(path.name.removesuffix(BESIDE)) if path.name.endswith(BESIDE) else path.parent
        try:
            found[str(folder.relative_to(runs))] = read_json(path)
        except ctp.InputError:
            continue
    return found


def trained(runs: Path) -> dict[str, dict[str, Any]]:
    """Recipes of what was trained on this page: prompts, and tuned models, whose recipes lie beside their folders."""
    return _found(runs, "*/*/prompts/*/recipe.json", "*/*/tuned/*.recipe.json")


def compressed(runs: Path) -> dict[str, dict[str, Any]]:
    """Manifests of models that were compressed on this page."""
    return {
        name: made for name, made in _found(runs, f"*/*/{MANIFEST}").items() if isinstance(made.get("recipe"), dict)
    }


def train_form(recipe: dict[str, Any]) -> list[Any]:
    """Values of the form of *Train*, in the order of ``learner.wanted_of``. Older recipes are those of prompts."""
    spec = recipe.get("spec", {})
    return [
        recipe.get("what", [SOFT]),
        *(recipe.get(name, gr.skip()) for name in ("rank", "corpus", "seq_len")),
        *(spec.get(n, gr.skip()) for n in ("tokens", "steps", "batch", "lr", "kl", "init", "evaluate_every", "seed")),
    ]


def compress_form(manifest: dict[str, Any]) -> list[Any]:
    """Values of the form of *Compress*, seed, text, windows and their length first, then those of ``spec_of``."""
    spec, recipe = manifest.get("spec", {}), manifest["recipe"]
    bits, group = spec.get("bits"), spec.get("group_size")
    return [
        *(recipe.get(name, gr.skip()) for name in ("seed", "corpus", "samples", "seq_len")),
        "none" if bits is None else str(bits),
        0 if spec.get("pattern") else 100 * spec.get("sparsity", 0.0),
        spec.get("pattern") or "",
        "row" if group is None else str(group),
        bool(spec.get("act_order")),
        bool(spec.get("symmetric")),
    ]


def offer(tab: gr.Tab, names: Any, form: Any, outputs: list[Any], elem_id: str, events: dict[str, Any]) -> None:
    """Lay out a list of earlier recipes; choosing one fills ``outputs``. ``names``: () -> name -> recipe."""
    earlier = gr.Dropdown([], label="Take the settings of an earlier one", elem_id=elem_id)

    def take(name: str | None) -> list[Any]:
        found = names()
        return form(found[name]) if name in found else [gr.skip() for _ in outputs]

    tab.select(lambda: gr.update(choices=list(names())), None, earlier, queue=False, show_progress="hidden", **events)
    earlier.input(take, earlier, outputs, queue=False, show_progress="hidden", **events)
