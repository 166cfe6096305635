"""The lab's files: where they are, how they are written, and how a result is kept until its inputs change.

A reader never sees half a file: each is written beside its destination and then moved there in one step.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ctplab import parallel
from ctplab.errors import InputError
from ctplab.text_files import read_json, shown

LOG = logging.getLogger("ctplab")
"""Says what was made anew because the kept one was damaged: a line on standard error."""

Compute = Callable[[], dict[str, Any]]
Keep = Callable[[str, dict[str, Any], Compute], dict[str, Any]]
"""(name, key, compute) -> the result kept under ``name`` if it was made from the same ``key``, else a computed one."""


UMASK = os.umask(0)  # it can only be read by changing it
os.umask(UMASK)
NAME_BYTES = 100
"""Disks allow 255 bytes; two names, a suffix and the mark of an unfinished file are put together."""


def data_dir() -> Path:
    """The folder of the embedded world and model: inside an installed wheel, or ``data/atlas`` in a checkout."""
    packaged = Path(__file__).parent / "atlas" / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "data" / "atlas"


def cache_dir() -> Path:
    """``CTPLAB_CACHE``, or ``~/.cache/ctplab``."""
    return Path(os.environ.get("CTPLAB_CACHE") or Path.home() / ".cache" / "ctplab")


def slug(name: str) -> str:
    """``name`` as the name of a file: never empty, never a path, never too long for a disk."""
    found = re.sub(r"[^\w.+-]+", "-", name).strip("-")
    if len(found.encode()) > NAME_BYTES:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
        found = f"{found.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{digest}"
    return found if found.strip(".") else "unnamed"


def check_name(name: Any, what: str) -> str:
    """``name``, if it is the name of a file in one folder. Raises InputError if it is a path or no text.

    ``what`` the name is of, for the message.
    """
    if not isinstance(name, str) or slug(name) != name:
        raise InputError(f"{what} {shown(name)} is no name: letters, digits and . + - _ only")
    return name


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Inside, errors of the disk are bad input: InputError says in one line that ``what`` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise InputError(f"cannot write {what}: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:
        if type(error) is Exception and "(os error" in str(error):  # so the tokenizers library reports the disk's
            raise InputError(f"cannot write {what}: {error}") from error
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path. At the end of the block its file moves to ``path``, or is deleted if the block failed.

    Makes the folder. Raises InputError if the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_replaceable(path)
            yield temporary
            _let_read(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it moved, or never was
            temporary.unlink()


def _let_read(file: Path) -> None:
    """Give a file the mode of any new one: the safetensors library lets its owner alone read it."""
    if file.is_file() and not file.is_symlink():
        file.chmod(0o666 & ~UMASK)


def check_writable(folder: Path, room: int = 0) -> None:
    """Raise InputError if nothing can be written into ``folder``, or not so many bytes: before long work begins.

    The folder may not exist yet.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"cannot write {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {folder}: Permission denied for {there}")
    free = shutil.disk_usage(there).free
    if free < room:
        raise InputError(f"cannot write {folder}: this needs {room / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")


def _check_replaceable(path: Path) -> None:
    """Raise InputError if ``path`` is a device, a pipe or a socket. A link is replaced, not what it points to."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        raise InputError(f"cannot write {path}: it is a device or a pipe, not a file")


def check_is_json(path: Path) -> None:
    """Raise InputError if something else than an object of JSON is at ``path``, where one is going to be written."""
    if os.path.lexists(path):
        try:
            read_json(path, finite=False)
        except InputError as error:
            raise InputError(f"{path} exists and is no result, so it is not replaced ({error})") from None


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
            for file in temporary.rglob("*"):
                _let_read(file)
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


def result_in(path: Path, kept: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a file that :func:`once` wrote, read as ``kept``. None, with a line, if it is not as written."""
    result = kept.get("result")
    if isinstance(result, dict) and kept.get("seal") == _seal(kept.get("key"), result):
        return result
    LOG.warning("%s is damaged, or of an earlier version; it is made anew", path)
    return None


def _seal(key: Any, result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([key, result], sort_keys=True).encode()).hexdigest()[:16]


def _kept(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The result in ``path`` if it is intact and was made from ``key``."""
    if not os.path.lexists(path):
        return None
    try:
        kept = read_json(path, finite=False)
    except InputError as error:
        LOG.warning("%s; it is made anew", error)
        return None
    return result_in(path, kept) if kept.get("key") == key else None


def once(path: Path, key: dict[str, Any], compute: Compute) -> dict[str, Any]:
    """Return the result in ``path`` if it was made from the same ``key``. Otherwise compute it and keep it there.

    A damaged result is computed again, with a line. Among several processes only the main one writes. ``compute`` must
    be work that they share, so that the main one does not write before all have looked.
    """
    result = _kept(path, key)
    if result is None:
        result = compute()
        if parallel.is_main():
            write_json({"key": key, "result": result, "seal": _seal(key, result)}, path)
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
