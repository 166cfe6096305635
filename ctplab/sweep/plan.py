"""Plan a sweep before it starts: its cells, its cost, and whether it can be done at all.

Planning reads texts and model files. It loads no model and computes nothing.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctplab.disk import result_in
from ctplab.errors import InputError
from ctplab.formats.checkpoint import MANIFEST
from ctplab.measure.perplexity import masks_of, windows_of
from ctplab.models.anatomy import check_context
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.models.loading import local_folder, skeleton
from ctplab.progress import Progress, silent
from ctplab.sweep import log
from ctplab.sweep.cells import STEPS, Cell, Settings, cells
from ctplab.sweep.grid import SweepGrid
from ctplab.sweep.steps import Job, forget, result_path, text
from ctplab.text_files import read_json

PAGE, PAGES = 4096, 64


@dataclass(frozen=True)
class Planned:
    """A cell and its status."""

    job: Job
    done: bool
    replaces: bool
    """True if its result would replace one made with other settings."""
    seconds: float | None
    """Estimated from done cells of the same step and model; None if there are none."""


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, each after the cell it needs."""

    name: str
    grid: SweepGrid
    settings: Settings
    planned: tuple[Planned, ...]

    @property
    def jobs(self) -> list[Job]:
        """The jobs that are not done."""
        return [each.job for each in self.planned if not each.done]

    def by_step(self) -> dict[str, dict[str, Any]]:
        """By step: numbers of cells and done cells; tokens and estimated seconds still to do (None: not measured)."""
        found = {}
        for step in STEPS:
            mine = [each for each in self.planned if each.job.cell.step == step]
            to_do = [each for each in mine if not each.done]
            seconds = [each.seconds for each in to_do if each.seconds is not None]
            found[step] = {
                "cells": len(mine),
                "done": len(mine) - len(to_do),
                "tokens": sum(each.job.tokens for each in to_do),
                "seconds": sum(seconds) if len(seconds) == len(to_do) else None,
            }
        return found


def make_plan(name: str, grid: SweepGrid, settings: Settings, progress: Progress = silent) -> Plan:
    """Check the grid against models and texts, and find the cells that are done.

    Raises InputError if a model or corpus cannot be read, a text is too short, or a prompt is too long.
    """
    forget()
    for model in grid.models:
        _check_model(model, grid)
    every = list(cells(grid))
    paths: dict[Path, Cell] = {}
    for cell in every:
        other = paths.setdefault(result_path(cell, settings.root), cell)
        if other is not cell:
            raise InputError(f"'{other.name}' and '{cell.name}' would be kept under one name; rename one")
    lines = log.read(settings.root)
    logged = {line["key"] for line in lines}
    rates = _rates(lines)
    planned: dict[Cell, Planned] = {}
    for cell in progress(every, total=len(every), label="plan"):
        need = planned[cell.needs] if cell.needs else None
        job, made_from = _job(cell, settings, need.job.key if need else _content(local_folder(cell.model)))
        path = result_path(cell, settings.root)
        same = _made_from(path, made_from)
        done = same and job.key in logged and (need is None or need.done)
        rate = rates.get((cell.step, cell.model))
        planned[cell] = Planned(job, done, path.exists() and not same, job.tokens / rate if rate else None)
    return Plan(name, grid, settings, tuple(planned.values()))


def _check_model(model: str, grid: SweepGrid) -> None:
    folder = local_folder(model)
    if (folder / MANIFEST).exists():
        raise InputError(f"{model} is compressed already; a sweep starts from full models")
    empty = skeleton(folder)
    for name, recipe in sorted(grid.prompts.items(), key=lambda item: -item[1].tokens):  # the longest first
        try:
            check_context(empty, recipe.tokens, grid.seq_len)
        except InputError as error:
            raise InputError(f"prompts.{name} on {model}: {error}") from None
    check_context(empty, 0, grid.seq_len)
    counted = {(name, grid.loss) for name in (*grid.corpora, *grid.score)}
    for name, loss in {*counted, (grid.calibration.corpus, None)}:
        text(model, name, grid.seq_len, loss)  # refuses unknown names and missing files


def _job(cell: Cell, settings: Settings, before: Any) -> tuple[Job, dict[str, Any]]:
    """The cell's job, and the inputs that its result must record. ``before``: its need's key or the model's content."""
    calibration, seq_len = settings.calibration, settings.seq_len
    texts: dict[tuple[str, str], str] = {}

    def split(name: str, which: str):
        found = getattr(text(cell.model, name, seq_len, settings.loss_of(cell)), which)
        texts[name, which] = found.fingerprint
        return found

    if cell.step == "compress" and cell.spec:
        windows = split(calibration.corpus, "train").sample(calibration.samples, calibration.seed)
        made_from = {"spec": cell.spec.to_json(), "calibration": tensor_fingerprint(windows)}
        tokens = windows.numel()
    elif cell.step == "learn" and cell.recipe and cell.corpus:
        train, validation = split(cell.corpus, "train"), split(cell.corpus, "validation")
        _ = train.windows, validation.windows  # raises InputError if the text is too short for one
        made_from = {"spec": cell.recipe.to_json(), "corpus_fingerprint": train.fingerprint}
        tokens = cell.recipe.steps * cell.recipe.batch * seq_len
    else:
        test = split(cell.text or "", "test")
        windows, masks = windows_of(test, settings.windows), masks_of(test, settings.windows)
        counted = None if masks is None else tensor_fingerprint(masks)
        made_from = {"windows": tensor_fingerprint(windows), "shape": list(windows.shape), "masks": counted}
        tokens = windows.numel()
    what = [cell.name, before, made_from, sorted(texts.values()), settings.dtype]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return Job(cell, settings, key, tokens, texts), made_from


def _content(folder: Path) -> list[list[Any]]:
    """Names, sizes and hashed sample pages of a model's files. Other weights change them; a copy elsewhere does not."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        size, digest = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            for index in range(PAGES):
                file.seek(index * max(PAGE, size // PAGES))
                digest.update(file.read(PAGE))
        found.append([path.name, size, digest.hexdigest()])
    return found


def _made_from(path: Path, made_from: dict[str, Any]) -> bool:
    """Whether the result in ``path`` records that it was made from ``made_from``; None: it says nothing of the kind."""
    try:
        kept = read_json(path, finite=False)
    except InputError:
        return False
    if "result" in kept and result_in(path, kept) is None:
        return False
    recorded = kept.get("key", kept)
    return isinstance(recorded, dict) and all(recorded.get(name) == value for name, value in made_from.items())


def _rates(lines: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Tokens per second by (step, model), over the cells that were computed."""
    sums: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        if line.get("computed") and line["seconds"] > 0:
            total = sums.setdefault((line["step"], line["model"]), [0.0, 0.0])
            total[0] += line["tokens"]
            total[1] += line["seconds"]
    return {kind: tokens / seconds for kind, (tokens, seconds) in sums.items()}
