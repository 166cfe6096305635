"""A sweep's TOML file as a validated grid: models x specs x prompts x corpora x seeds.

This module checks settings only. ``plan.py`` checks that models and texts exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ctplab.errors import InputError
from ctplab.specs import LARGEST, CompressionSpec, PromptSpec, check_types
from ctplab.text.corpora import LOSSES, MOST_SAMPLES
from ctplab.text_files import read_toml, shown

T = TypeVar("T")

MOST_CELLS = 100_000
"""A sweep of more would take years; its plan alone takes minutes and gigabytes."""


@dataclass(frozen=True)
class Calibration:
    """The windows that calibrate all compressions of a sweep."""

    corpus: str
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise InputError(f"samples must be from 1 to {MOST_SAMPLES}, not {self.samples}")


@dataclass(frozen=True)
class SweepGrid:
    """Every model with every spec, and on each of these every prompt on every corpus with every seed."""

    models: tuple[str, ...]
    specs: tuple[CompressionSpec, ...]
    prompts: Mapping[str, PromptSpec]
    corpora: tuple[str, ...]
    """Prompts are learned on each of them."""
    score: tuple[str, ...]
    """Every arm is scored on the test split of each."""
    seeds: tuple[int, ...]
    """Seeds of the prompts."""
    seq_len: int
    windows: int | None
    """Scored windows per corpus. None: all."""
    calibration: Calibration
    loss: str | None = None
    """Which tokens are counted, as in :func:`ctplab.text.corpora.corpus`."""

    @property
    def size(self) -> int:
        """The number of cells."""
        learned = len(self.prompts) * len(self.corpora) * len(self.seeds) * (1 + len(self.score))
        return len(self.models) * (len(self.score) + len(self.specs) * (1 + len(self.score) + learned))

    def __str__(self) -> str:
        parts = ("model", self.models), ("spec", self.specs), ("prompt", self.prompts)
        counts = [*parts, ("corpus", self.corpora), ("seed", self.seeds)]
        plural = {"corpus": "corpora"}
        return " x ".join(f"{len(of)} {name if len(of) == 1 else plural.get(name, name + 's')}" for name, of in counts)


KEYS = tuple(field.name for field in fields(SweepGrid))


def read(path: Path, seed: int = 0) -> SweepGrid:
    """Read the grid from a TOML file. Raises InputError, in one line, if anything in the file is wrong.

    ``seed`` is used if the file has no ``seeds``. Relative paths start at the working directory.
    """
    data = read_toml(path)
    try:
        return _grid(data, seed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _grid(data: dict[str, Any], seed: int) -> SweepGrid:
    _known(data, KEYS, "the sweep")
    corpora = tuple(map(_absolute_text, _list(data, "corpora", str)))
    calibration = {"corpus": corpora[0], **_table(data, "calibration")}
    calibration["corpus"] = _absolute_text(str(calibration["corpus"]))
    windows = data.get("windows")
    grid = SweepGrid(
        models=tuple(map(_absolute_model, _list(data, "models", str))),
        specs=tuple(_spec(CompressionSpec, entry, "specs") for entry in _list(data, "specs", dict)),
        prompts={name: _prompt(name, entry) for name, entry in _table(data, "prompts").items()},
        corpora=corpora,
        score=tuple(map(_absolute_text, _list(data, "score", str))) if "score" in data else corpora,
        seeds=tuple(map(_seed, _list(data, "seeds", int))) if "seeds" in data else (seed,),
        seq_len=_positive(data, "seq_len"),
        windows=None if windows is None else _positive(data, "windows"),
        calibration=_spec(Calibration, calibration, "calibration"),
        loss=data.get("loss"),
    )
    if grid.size > MOST_CELLS:
        raise InputError(f"{grid} are {grid.size} cells; at most {MOST_CELLS} go into one sweep: split the file")
    if grid.loss not in (None, *LOSSES):
        raise InputError(f"loss must be one of {', '.join(LOSSES)}, not {grid.loss!r}")
    tags = [spec.tag for spec in grid.specs]
    for tag in tags:
        if tags.count(tag) > 1:
            raise InputError(f"two specs have the tag {tag!r} and so one folder; give them to two sweeps")
    return grid


def _known(data: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in keys:
            raise InputError(f"unknown setting {key!r} in {where}; known are {', '.join(keys)}")


def _list(data: dict[str, Any], key: str, kind: type[T]) -> list[T]:
    """A list of at least one item, without duplicates."""
    what = {str: "texts", int: "whole numbers", dict: "tables such as {bits = 4}"}[kind]
    found = data.get(key)
    if not isinstance(found, list) or not found or not all(type(item) is kind for item in found):
        raise InputError(f"{key} must be a list of {what}, not {shown(found)}" if key in data else f"{key} is missing")
    seen = set()
    for item in found:
        if repr(item) in seen:
            raise InputError(f"{key} names {shown(item)} twice")
        seen.add(repr(item))
    return found


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{key} must be a table, not {shown(found)}")
    return found


def _positive(data: dict[str, Any], key: str) -> int:
    if key not in data:
        raise InputError(f"{key} is missing")
    if type(data[key]) is not int or not 1 <= data[key] <= LARGEST:
        raise InputError(f"{key} must be a whole number from 1 to {LARGEST}, not {shown(data[key])}")
    return data[key]


def _seed(value: int) -> int:
    if not 0 <= value <= LARGEST:
        raise InputError(f"a seed must be from 0 to {LARGEST}, not {value}")
    return value


def _spec(cls: type[T], entry: dict[str, Any], where: str) -> T:
    """Build ``cls`` from a table. This function checks keys and types; ``cls`` itself checks values."""
    _known(entry, tuple(get_type_hints(cls)), where)
    try:
        check_types(cls, entry)
        return cls(**entry)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _prompt(name: str, entry: Any) -> PromptSpec:
    where = f"prompts.{name}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be a table, not {shown(entry)}")
    if "seed" in entry:
        raise InputError(f"{where}: a prompt's seed comes from the sweep's seeds")
    if entry.get("init") == "prompt":
        raise InputError(f"{where}: a sweep has no earlier prompt to start from; use another init")
    return _spec(PromptSpec, entry, where)


def _absolute_model(name: str) -> str:
    """Make a folder's path absolute, because a worker may run in another directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _absolute_text(name: str) -> str:
    """Make the paths of a ``file:`` corpus absolute."""
    if not name.startswith("file:"):
        return name
    return "file:" + ",".join(str(Path(part).resolve()) for part in name.removeprefix("file:").split(","))
