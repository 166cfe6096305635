"""A sweep's TOML file as a validated grid: models x specs x prompts x corpora x seeds.

This module checks settings only. ``plan.py`` checks that models and texts exist.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ctplab.errors import InputError
from ctplab.specs import CompressionSpec, PromptSpec
from ctplab.text.corpora import LOSSES

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """The windows that calibrate all compressions of a sweep."""

    corpus: str
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, not {self.samples}")


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
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error}") from None
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
        seeds=tuple(_list(data, "seeds", int)) if "seeds" in data else (seed,),
        seq_len=_positive(data, "seq_len"),
        windows=None if windows is None else _positive(data, "windows"),
        calibration=_spec(Calibration, calibration, "calibration"),
        loss=data.get("loss"),
    )
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
        raise InputError(f"{key} must be a list of {what}, not {found!r}" if key in data else f"{key} is missing")
    for item in found:
        if found.count(item) > 1:
            raise InputError(f"{key} names {item!r} twice")
    return found


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{key} must be a table, not {found!r}")
    return found


def _positive(data: dict[str, Any], key: str) -> int:
    if key not in data:
        raise InputError(f"{key} is missing")
    if type(data[key]) is not int or data[key] < 1:
        raise InputError(f"{key} must be a whole number of at least 1, not {data[key]!r}")
    return data[key]


def _spec(cls: type[T], entry: dict[str, Any], where: str) -> T:
    """Build ``cls`` from a table. This function checks keys and types; ``cls`` itself checks values."""
    hints = get_type_hints(cls)
    _known(entry, tuple(hints), where)
    for key, value in entry.items():
        number_for_float = hints[key] is float and type(value) is int
        bool_for_number = isinstance(value, bool) and hints[key] is not bool
        if bool_for_number or not (number_for_float or isinstance(value, hints[key])):
            wanted = getattr(hints[key], "__name__", str(hints[key]))
            raise InputError(f"{key} in {where} must be of type {wanted}, not {value!r}")
    try:
        return cls(**entry)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _prompt(name: str, entry: Any) -> PromptSpec:
    where = f"prompts.{name}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be a table, not {entry!r}")
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
