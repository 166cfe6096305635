"""The log of done cells: one line of JSON each, appended by the process that did the cell.

It shows that every cell was done once, which cells are done already, and how fast cells of a kind run.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ctplab.errors import InputError
from ctplab.runs import store
from ctplab.text_files import expect, parse_json

ENTRIES = {"key": str, "step": str, "model": str, "tokens": int, "seconds": float, "computed": bool}


def read(root: Path) -> list[dict[str, Any]]:
    """Return all lines. A partial or damaged line, which a killed machine can leave, is skipped."""
    try:
        lines = store.completed(root).read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(InputError, UnicodeDecodeError):
            row = parse_json(line.decode())
            expect(row if isinstance(row, dict) else {}, **ENTRIES)
            found.append(row)
    return found


def append(root: Path, line: dict[str, Any]) -> None:
    """Add one line in one write, so that lines of several processes do not mix."""
    who = {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    path = store.completed(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps({**line, **who}).encode() + b"\n")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Lock the runs for one sweep, because two would compute the same cells. Raises InputError if one is running."""
    try:
        store.sweeps(root).mkdir(parents=True, exist_ok=True)
        with FileLock(store.sweeps(root) / "lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another sweep is writing to {root}; wait for it, or choose another folder") from None
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}") from None
