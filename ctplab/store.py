"""Run folders: the only place that builds paths.

<runs>/<model>/<tag>/                        a compressed model (or tag ``full``: results only)
    prompts/<name>/                          a prompt folder; ``state.safetensors`` while it is learned
    adapters/<name>/                         a LoRA adapter, likewise
    scores/<arm>--<corpus>.json              results, each written when it is known
    tasks/<arm>--<task>.json                 marks question by question, likewise
    recovery/<prompt>/                       sums of every arm beside one prompt, likewise
<runs>/<model>/transfer/                     cells of the transfer matrix
<runs>/<model>/report/                       figures, report.md, demo.json
<runs>/sweeps/<name>.json                    what a sweep found
<runs>/sweeps/completed.jsonl                cells of all sweeps: a line each, written when it is done
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctplab import parallel
from ctplab.compress.checkpoint import write_json
from ctplab.errors import InputError

Compute = Callable[[], dict[str, Any]]


def slug(name: str) -> str:
    """``name`` as a file name."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


def once(path: Path, key: dict[str, Any], compute: Compute) -> dict[str, Any]:
    """The result in ``path`` if it was made from the same ``key``; else compute it and keep it.

    Of several processes the main one writes; computing must be shared, so that it ends after all have looked.
    """
    try:
        kept = json.loads(path.read_text())
        if kept.get("key") == key:
            return kept["result"]
    except (OSError, json.JSONDecodeError, AttributeError, KeyError):
        pass  # absent or unfinished: computed again
    result = compute()
    if not parallel.is_main():
        return result
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "result": result})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return result


def sweeps(root: Path) -> Path:
    """Folder of what the sweeps found."""
    return root / "sweeps"


def sweep(root: Path, name: str) -> Path:
    """File of what the sweep ``name`` found."""
    return sweeps(root) / f"{slug(name)}.json"


def completed(root: Path) -> Path:
    """The log of done cells."""
    return sweeps(root) / "completed.jsonl"


def kept_in(folder: Path) -> Callable[[str, dict[str, Any], Compute], dict[str, Any]]:
    """``once`` for many named results in one folder: (name, key, compute) -> result."""
    return lambda name, key, compute: once(folder / f"{slug(name)}.json", key, compute)


@dataclass(frozen=True)
class Store:
    """The runs of one base model."""

    root: Path
    model: str

    @property
    def _home(self) -> Path:
        return self.root / slug(self.model)

    def compressed(self, tag: str) -> Path:
        """Folder of a compressed model."""
        return self._home / tag

    def prompt(self, tag: str, name: str) -> Path:
        """Folder of a prompt learned on the model ``tag``."""
        return self._home / tag / "prompts" / slug(name)

    def prompt_state(self, tag: str, name: str) -> Path:
        """Where learning keeps what it needs to resume."""
        return self.prompt(tag, name) / "state.safetensors"

    def adapter(self, tag: str, name: str) -> Path:
        """Folder of a LoRA adapter learned on the model ``tag``."""
        return self._home / tag / "adapters" / slug(name)

    def score(self, tag: str, arm: str, what: str) -> Path:
        """File of one arm's result on one corpus or question set."""
        return self._home / tag / "scores" / f"{slug(arm)}--{slug(what)}.json"

    def tasks(self, tag: str) -> Path:
        """Folder of results on tasks."""
        return self._home / tag / "tasks"

    def recovery(self, tag: str, prompt: str) -> Path:
        """Folder of the arms beside one prompt."""
        return self._home / tag / "recovery" / slug(prompt)

    def report(self) -> Path:
        """Folder of figures and tables."""
        return self._home / "report"

    def transfer(self) -> Path:
        """Folder of transfer cells."""
        return self._home / "transfer"

    once = staticmethod(once)
