"""The lab's files: where they are, how they are written, and how a result is kept until its inputs change.

A reader never sees half a file: each is written beside its destination and then moved there in one step.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ctplab import parallel
from ctplab.errors import InputError

Compute = Callable[[], dict[str, Any]]
Keep = Callable[[str, dict[str, Any], Compute], dict[str, Any]]
"""(name, key, compute) -> the result kept under ``name`` if it was made from the same ``key``, else a computed one."""


def data_dir() -> Path:
    """The folder of the embedded world and model: inside an installed wheel, or ``data/atlas`` in a checkout."""
    packaged = Path(__file__).parent / "atlas" / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "data" / "atlas"


def cache_dir() -> Path:
    """``CTPLAB_CACHE``, or ``~/.cache/ctplab``."""
    return Path(os.environ.get("CTPLAB_CACHE") or Path.home() / ".cache" / "ctplab")


def slug(name: str) -> str:
    """``name`` as a file name."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Inside, errors of the disk are bad input: InputError says in one line that ``what`` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {what}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path. At the end of the block its file moves to ``path``, or is deleted if the block failed.

    Makes the folder. Raises InputError if the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it moved, or never was
            temporary.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder. At the end of the block it moves to ``path``, or is deleted if the block failed.

    Raises InputError if ``path`` exists by then, or the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():  # a rename would replace an empty folder
                raise InputError(f"{path} exists already")
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    """Write ``text`` as UTF-8. Raises InputError if the disk refuses."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write ``data`` as JSON. Raises InputError if the disk refuses."""
    write_text(json.dumps(data, indent=1) + "\n", path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``. Raises InputError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"cannot read {path}: it holds no object")
    return found


def once(path: Path, key: dict[str, Any], compute: Compute) -> dict[str, Any]:
    """Return the result in ``path`` if it was made from the same ``key``. Otherwise compute it and keep it there.

    Among several processes only the main one writes. ``compute`` must be work that they share, so that the main one
    does not write before all have looked.
    """
    try:
        kept = read_json(path)
        if kept.get("key") == key and isinstance(kept.get("result"), dict):
            return kept["result"]
    except InputError:
        pass  # absent or damaged: computed again
    result = compute()
    if parallel.is_main():
        write_json({"key": key, "result": result}, path)
    return result


def kept_at(path: Path) -> Keep:
    """A :data:`Keep` that keeps one result in ``path``, whatever its name."""
    return lambda name, key, compute: once(path, key, compute)


def kept_in(folder: Path) -> Keep:
    """A :data:`Keep` that keeps many named results in one folder, one file each."""
    return lambda name, key, compute: once(folder / f"{slug(name)}.json", key, compute)


def compute_always(name: str, key: dict[str, Any], compute: Compute) -> dict[str, Any]:
    """A :data:`Keep` that keeps nothing: it always computes."""
    return compute()
