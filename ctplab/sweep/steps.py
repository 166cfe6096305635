"""Do one cell, in this process or in a worker of a cluster. ``runs/study.py`` keeps its result."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ctplab.disk import check_writable
from ctplab.errors import InputError
from ctplab.formats import prompt_file
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.loading import load
from ctplab.models import Model, Tokenizer
from ctplab.models.loading import load_tokenizer, local_folder
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import none
from ctplab.runs.stale import mark_report
from ctplab.runs.store import Store
from ctplab.runs.study import Study
from ctplab.sweep import log
from ctplab.sweep.cells import Cell, Settings, short
from ctplab.text.corpora import Corpus, Split, corpus

ROOM = 1_000_000
"""Bytes that must be free before a cell begins: on a full disk each would compute, and then fail to write."""


@dataclass(frozen=True)
class Job:
    """A cell with everything that a worker needs to know."""

    cell: Cell
    settings: Settings
    key: str
    """Changes with anything that changes the result."""
    tokens: int
    """Number of tokens to process."""
    texts: dict[tuple[str, str], str]
    """(corpus, split) -> fingerprint of the text that the cell reads. A worker refuses any other text."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    size: int
    """Tokens processed; 0 if the cell failed."""
    seconds: float = 0.0
    computed: bool = False
    """False if the result existed already."""
    error: str | None = None
    """Why it failed or was left out."""

    @property
    def note(self) -> str:
        """A line for the progress bar."""
        cell = self.cell
        return f"{cell.step} {short(cell.model)} {cell.tag} {'failed' if self.error else 'done'}"


def result_path(cell: Cell, root: Path) -> Path:
    """The file whose existence means that the cell is done."""
    store = Store(root, cell.model)
    if cell.step == "compress":
        return store.compressed(cell.tag) / MANIFEST
    if cell.step == "learn":
        return store.prompt(cell.tag, cell.folder) / prompt_file.MANIFEST
    return store.score(cell.tag, cell.arm, cell.text or "")


def failed(job: Job, error: Exception) -> Outcome:
    """The outcome of a cell that ended with ``error``, as one line."""
    said = str(error).strip().split("\n")[0]
    return Outcome(job.cell, 0, error=said if isinstance(error, InputError) else f"{type(error).__name__}: {said}")


def left_out(job: Job) -> Outcome:
    """The outcome of a cell whose need failed."""
    need = job.cell.needs
    return Outcome(job.cell, 0, error=f"left out: it needs '{need.name if need else ''}'")


def run_cell(job: Job, progress: Progress = silent) -> Outcome:
    """Do the cell unless it is done. The outcome holds any error; an interrupt propagates."""
    began, cell, root = time.perf_counter(), job.cell, job.settings.root
    path = result_path(cell, root)
    before = _stamp(path)
    try:
        if before is None:
            check_writable(root, ROOM)
        {"compress": _compress, "learn": _learn, "score": _score}[cell.step](job, progress)
        computed, seconds = _stamp(path) != before, time.perf_counter() - began
        about = {"key": job.key, "cell": cell.name, "step": cell.step, "model": cell.model, "tokens": job.tokens}
        log.append(root, {**about, "seconds": round(seconds, 3), "computed": computed})
    except Exception as error:  # after any error the other cells go on
        return failed(job, error)
    return Outcome(cell, job.tokens, seconds, computed)


def _stamp(path: Path) -> tuple[int, int] | None:
    """A stamp that changes whenever the file is replaced; None if there is no file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _compress(job: Job, progress: Progress) -> None:
    cell, calibration = job.cell, job.settings.calibration
    assert cell.spec is not None
    windows = _split(job, calibration.corpus, "train").sample(calibration.samples, calibration.seed)
    study = _study(job, _full(job), progress)
    study.store.make_way(cell.tag, study.made_from(cell.spec, windows))
    study.compressed(cell.spec, windows)
    mark_report(study.store.root, study.store.model)  # a demo's levels may have moved


def _learn(job: Job, progress: Progress) -> None:
    cell = job.cell
    assert cell.recipe is not None and cell.corpus is not None
    model = _model_of(job)
    base = _full(job) if cell.recipe.needs_full else model
    train, validation = (_split(job, cell.corpus, split) for split in ("train", "validation"))
    _study(job, base, progress).prompt(cell.tag, cell.folder, model, train, validation, cell.recipe)


def _score(job: Job, progress: Progress) -> None:
    cell, settings = job.cell, job.settings
    assert cell.text is not None
    model, prefix = _model_of(job), None
    if cell.prompt:
        prefix = prompt_file.load(Store(settings.root, cell.model).prompt(cell.tag, cell.folder)).prefix
    arm = Arm(cell.arm, model, prefix or none(model))
    _study(job, model, progress).scores(cell.tag, arm, _split(job, cell.text, "test"), settings.windows)


def _study(job: Job, base: Model, progress: Progress) -> Study:
    return Study(Store(job.settings.root, job.cell.model), base, tokenizer(job.cell.model), progress)


def _full(job: Job) -> Model:
    return _load_full(job.cell.model, job.settings.device, job.settings.dtype)


def _model_of(job: Job) -> Model:
    """The model of the cell's arm."""
    cell, settings = job.cell, job.settings
    if cell.spec is None:
        return _full(job)
    folder = Store(settings.root, cell.model).compressed(cell.tag)
    made = (folder / MANIFEST).stat().st_mtime_ns
    return _load_compressed(folder, made, settings.device, settings.dtype)


@lru_cache(maxsize=1)  # cells come model by model and level by level
def _load_full(model: str, device: str | None, dtype: str | None) -> Model:
    return load(model, device=device, dtype=dtype)[0]


@lru_cache(maxsize=1)
def _load_compressed(folder: Path, made: int, device: str | None, dtype: str | None) -> Model:
    """``made``: the manifest's time, so that a model that was compressed anew is loaded anew."""
    return load(folder, device=device, dtype=dtype)[0]


@lru_cache
def tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a base model."""
    return load_tokenizer(local_folder(model))


@lru_cache
def text(model: str, name: str, seq_len: int, loss: str | None) -> Corpus:
    """The corpus in the model's tokens. Each process tokenises a split once."""
    return corpus(name, tokenizer(model), seq_len, loss=loss)


def forget() -> None:
    """Clear the caches, because models and texts may have changed since an earlier sweep in this process."""
    for cached in (_load_full, _load_compressed, tokenizer, text):
        cached.cache_clear()


def _split(job: Job, name: str, split: str) -> Split:
    found = getattr(text(job.cell.model, name, job.settings.seq_len, job.settings.loss_of(job.cell)), split)
    if found.fingerprint != job.texts[name, split]:
        raise InputError(f"{name} ({split}) holds other text on this machine than where the sweep was started")
    return found
