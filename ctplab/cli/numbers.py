"""Numbers and texts on the command line: the bounded types of its options, and results as JSON."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from ctplab.specs import LARGEST


def at_least(low: int, high: int = LARGEST) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from ``low`` to ``high``."""

    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, not {value}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, not {value}")
        return value

    return number


def real(text: str) -> float:
    """The type of an option that takes finite numbers."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, not {value}")
    return value


def words(text: str) -> str:
    """The type of an option that takes text for a model. Bytes that are no UTF-8 arrive here as lone surrogates."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise argparse.ArgumentTypeError("holds bytes that are not UTF-8 text")
    return text


def to_json(result: Any) -> str:
    """``result`` as one line of JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(finite(result), allow_nan=False)


def finite(value: Any) -> Any:
    """``value`` with None for NaN and infinities, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
