"""What a client may ask for. Every number and every text that comes from a page or a program is checked here."""

import re
from typing import Any

import ctplab as ctp

LONGEST_TEXT = 20_000  # characters of a question, a hard prompt or a text to look at
NAME = re.compile(r"(?!\.+$)[\w][\w .+-]{0,79}")


def number(value: Any, name: str, low: float, high: float) -> float:
    """``value`` as a number from ``low`` to ``high``. Raises InputError for anything else, infinities and NaN too."""
    try:
        if isinstance(value, bool) or not low <= float(value) <= high:
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:37]}..."
        raise ctp.InputError(f"{name}: give a number from {low:g} to {high:g}, not {shown}") from None


def whole(value: Any, name: str, low: int, high: int) -> int:
    """``value`` as a whole number from ``low`` to ``high``. Raises InputError as :func:`number` does."""
    found = number(value, name, low, high)
    if found != int(found):
        raise ctp.InputError(f"{name}: give a whole number, not {value!r}")
    return int(found)


def text(value: Any, name: str, longest: int = LONGEST_TEXT) -> str:
    """``value`` as a text that can be written as UTF-8. Raises InputError for anything else, and if it is too long."""
    if not isinstance(value, str):
        raise ctp.InputError(f"{name}: give a text")
    if len(value) > longest:
        raise ctp.InputError(f"{name}: at most {longest:,} characters, not {len(value):,}")
    return value.encode("utf-8", "replace").decode()


def name(value: Any, what: str) -> str:
    """``value`` as a name: no path, no line break, not only dots. Raises InputError for anything else."""
    if not isinstance(value, str) or not NAME.fullmatch(value.strip()):
        raise ctp.InputError(f"give {what} a name of letters, digits, spaces, '-', '_', '+' and '.'")
    return value.strip()


def one_of(value: Any, what: str, choices: Any) -> Any:
    """``value`` if it is one of ``choices``. Raises InputError for anything else."""
    if value not in choices:
        raise ctp.InputError(f"{what}: choose one of {', '.join(map(str, choices))}")
    return value


def some_of(value: Any, what: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``choices`` that the list ``value`` names. Raises InputError if it names none, or anything else."""
    if not isinstance(value, list | tuple) or not value or not all(each in choices for each in value):
        raise ctp.InputError(f"{what}: choose one or more of {', '.join(choices)}")
    return tuple(choice for choice in choices if choice in value)
