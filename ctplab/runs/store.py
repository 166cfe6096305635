"""Run folders. Only this module builds their paths.

<runs>/<model>/<tag>/                        a compressed model (or tag ``full``: results only); ``<tag>-<8 digits>/``
                                             if weights of another calibration or model lie there already
    prompts/<name>/                          a prompt folder; ``state.safetensors`` while it is learned
    adapters/<name>/                         a LoRA adapter, likewise
    tuned/<name>/                            the model with tuned scales, norms or kept values, likewise
    exports/<name>/                          the model with a prompt in its vocabulary, for other programs
    scores/<arm>--<corpus>.json              results, each written as soon as it is known
    tasks/<arm>--<task>.json                 marks question by question, likewise
    questions/<name>/                        answers to a set of questions, likewise
    worth/<prompt>--<text>/                  summed NLL without each row of one prompt, likewise
    recovery/<prompt>/                       summed NLL of every arm compared with one prompt, likewise
<runs>/<model>/transfer/                     cells of the transfer matrix
<runs>/<model>/report/                       figures, report.md, demo.json
<runs>/sweeps/<name>.json                    results of a sweep
<runs>/sweeps/completed.jsonl                done cells of all sweeps, a line each
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctplab.disk import slug, writing
from ctplab.errors import InputError
from ctplab.formats.checkpoint import MANIFEST, read_manifest


def sweeps(root: Path) -> Path:
    """Folder of the sweeps' results."""
    return root / "sweeps"


def sweep(root: Path, name: str) -> Path:
    """File of the results of the sweep ``name``."""
    return sweeps(root) / f"{slug(name)}.json"


def completed(root: Path) -> Path:
    """The log of done cells."""
    return sweeps(root) / "completed.jsonl"


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

    def place(self, name: str, made_from: dict[str, Any]) -> Path:
        """The folder for weights ``made_from`` this, called ``name`` if no others lie there. Replaces nothing.

        ``made_from`` is part of the manifest of weights that were made from it.
        """
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:8]
        first, beside = self.compressed(name), self.compressed(f"{name}-{digest}")
        if not (first / MANIFEST).exists():
            return first
        try:
            return first if made_from.items() <= read_manifest(first).items() else beside
        except InputError:  # damaged: it may be somebody's all the same
            return beside

    def make_way(self, name: str, made_from: dict[str, Any]) -> None:
        """Move weights that were not ``made_from`` this, with their prompts and scores, to a name beside ``name``.

        For sweeps, whose results lie under the level's own name.
        """
        folder = self.compressed(name)
        if self.place(name, made_from) == folder:
            return
        aside = (self.compressed(f"{name}-before-{i}") for i in itertools.count(1))
        with writing(folder):
            folder.rename(next(path for path in aside if not path.exists()))

    def prompt(self, tag: str, name: str) -> Path:
        """Folder of a prompt learned on the model ``tag``."""
        return self._home / tag / "prompts" / slug(name)

    def export(self, tag: str, name: str) -> Path:
        """Folder of the model ``tag`` with a prompt in its vocabulary."""
        return self._home / tag / "exports" / slug(name)

    def prompt_state(self, tag: str, name: str) -> Path:
        """File that learning resumes from."""
        return self.prompt(tag, name) / "state.safetensors"

    def tuned(self, tag: str, name: str) -> Path:
        """Folder of the model ``tag`` with tuned scales, norms or kept values."""
        return self._home / tag / "tuned" / slug(name)

    def adapter(self, tag: str, name: str) -> Path:
        """Folder of a LoRA adapter learned on the model ``tag``."""
        return self._home / tag / "adapters" / slug(name)

    def score(self, tag: str, arm: str, what: str) -> Path:
        """File of one arm's result on one corpus or question set."""
        return self._home / tag / "scores" / f"{slug(arm)}--{slug(what)}.json"

    def tasks(self, tag: str) -> Path:
        """Folder of results on tasks."""
        return self._home / tag / "tasks"

    def questions(self, tag: str, name: str) -> Path:
        """Folder of the answers to a set of questions."""
        return self._home / tag / "questions" / slug(name)

    def recovery(self, tag: str, prompt: str) -> Path:
        """Folder of the arms compared with one prompt."""
        return self._home / tag / "recovery" / slug(prompt)

    def worth(self, tag: str, prompt: str, text: str) -> Path:
        """Folder of the scores without each row of a prompt, on one text."""
        return self._home / tag / "worth" / f"{slug(prompt)}--{slug(text)}"

    def report(self) -> Path:
        """Folder of figures and tables."""
        return self._home / "report"

    def transfer(self) -> Path:
        """Folder of transfer cells."""
        return self._home / "transfer"
