"""Read what others wrote: text, JSON and TOML. Whatever is wrong with a file is one line that names it and a remedy.

Every such file passes through here, whoever asks for it. So the rest of the lab need not fear what stands in it:
numbers are finite and fit into 64 bits, nesting is shallow, and strings that become paths are checked to be names.
"""

import codecs
import json
import math
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from ctplab.errors import InputError

DEPTH = 64
"""Levels of nesting; ours are four, those of other programs about ten."""
LARGEST = 2**63 - 1
MANIFEST_BYTES = 2**28
"""A manifest is a few kilobytes. The index of a model with a million tensors is about 100 MB."""
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""What a text file of another encoding begins with; UTF-32's first, because UTF-16's is a part of it."""
FORMATS = {
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it first",
    b"PK\x03\x04": "a zip file: unpack it first",
    b"PAR1": "a Parquet file: save its rows as .jsonl",
    b"%PDF": "a PDF: save its text as UTF-8",
    b"\x80\x04": "a pickle, which is not read here",
    b"GGUF": "a GGUF file: 'ctplab import model' makes a folder of it",
}
"""What files of other formats begin with."""


def regular(path: Path) -> Path:
    """``path`` itself. Raises InputError unless it is a regular file, or a link to one: a pipe or device may never end.

    Such a path can be unreadable in many ways: each is one line.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        what = "it is a link to nothing" if path.is_symlink() else "No such file"
        raise InputError(f"cannot read {path}: {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or half of a character
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    return path


def read_text(path: Path) -> str:
    """The UTF-8 text in ``path``, without a byte order mark and with ``\\n`` as line break."""
    try:
        with regular(path).open(encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}: {_encoding(path)}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if "\0" in text[:1000]:  # UTF-16 of plain English without a mark is valid UTF-8
        raise InputError(f"cannot read {path}: {_encoding(path)}")
    return text


def _encoding(path: Path) -> str:
    """What a file that is no UTF-8 text is likely to be, and what to do."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    for mark, what in FORMATS.items():
        if head.startswith(mark):
            return f"it is {what}"
    name = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if name is None and head.count(0) > len(head) // 4:
        name = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
    if name is None and head.count(0) == 0:
        line = _first_bad_line(path)
        return (
            f"line {line} is not UTF-8 text; if it is Latin-1 or Windows-1252, "
            f"'iconv -f WINDOWS-1252 -t UTF-8' converts it"
        )
    if name is None:
        return "it is not UTF-8 text, but binary"
    return f"it is {name} text, not UTF-8; 'iconv -f {name} -t UTF-8' converts it"


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def parse_json(text: str, *, finite: bool = True, large: bool = False) -> Any:
    """The value that ``text`` holds. Raises InputError with the reason, without a file's name, if it is none.

    Deep nesting is refused. So are numbers beyond 64 bits unless ``large``, and NaN and infinities, which are no JSON,
    if ``finite``.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise InputError(f"it is no JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(_reason(error)) from None
    check_plain(found, finite=finite, large=large)
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {DEPTH} levels"
    return "it holds a number beyond 64 bits" if "digits" in str(error) else str(error)


def check_plain(value: Any, *, finite: bool = True, large: bool = False) -> None:
    """Raise InputError if ``value`` is nested too deep, or holds numbers that are not allowed (see ``parse_json``).

    Strings are left alone: what a string may be depends on what it is for.
    """
    level = [value]
    for _ in range(DEPTH):
        below = []
        for item in level:
            if finite and isinstance(item, float) and not math.isfinite(item):
                raise InputError(f"it holds the number {item}, which is not finite")
            if not large and isinstance(item, int) and abs(item) > LARGEST:
                raise InputError("it holds a number beyond 64 bits")
            below += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if not below:
            return
        level = below
    raise InputError(f"it is nested deeper than {DEPTH} levels")


def read_json(path: Path, *, finite: bool = True, large: bool = False) -> dict[str, Any]:
    """The object in ``path``. Raises InputError, naming the file, if there is none.

    ``finite`` and ``large``: as for :func:`parse_json`. Configurations of other programs may hold ``Infinity``, and
    tokenizers without a longest text say 10^30.
    """
    if (size := regular(path).stat().st_size) > MANIFEST_BYTES:
        raise InputError(f"cannot read {path}: {size / 1e6:.0f} MB are too much for a manifest")
    text = read_text(path)
    try:
        found = parse_json(text, finite=finite, large=large)
        if not isinstance(found, dict):
            raise InputError("it holds no object")
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return found


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Inside, what is wrong with what ``path`` holds is said with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The table in ``path``. Raises InputError, naming the file, if there is none."""
    text = read_text(path)
    try:
        found = tomllib.loads(text)
        check_plain(found)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {_reason(error)}") from None
    return found


def expect(data: Mapping[str, Any], **kinds: Any) -> None:
    """Raise InputError unless every entry of ``data`` that ``kinds`` names is of its kind: a type or a union of types.

    A missing entry counts as None. A whole number may stand for a float; True and False are no numbers.
    """
    for name, kind in kinds.items():
        value = data.get(name)
        if not of_kind(value, kind):
            wanted = getattr(kind, "__name__", str(kind)).replace("NoneType", "null")
            raise InputError(
                f"{name} is {shown(value)}, not of type {wanted}" if name in data else f"{name} is missing"
            )


def of_kind(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of a type, or of one in a union. Whole numbers pass as floats, booleans never as numbers."""
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (type(value) is int and float in kinds)


def shown(value: Any) -> str:
    """A value from a file as a message shows it: short, and in one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
