"""The model hub: whether it answers from here, and what of it is kept. Its own library tries for most of a minute."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from ctplab.errors import InputError

PATIENCE = 5.0
"""Seconds until the hub counts as out of reach; ``HF_HUB_ETAG_TIMEOUT``, its library's own setting, changes it."""
YES = ("1", "ON", "YES", "TRUE")
"""What the hub's library takes for true in the environment."""
VALID = 30.0
"""Seconds for which an answer holds: one command asks for several files."""

_found: dict[str, tuple[float, bool]] = {}


def find(name: str) -> str | None:
    """``name``, if the hub answers; else the folder of the copy that was downloaded before; else None.

    Raises InputError if the hub has no such names.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise InputError(f"{name!r} is neither a folder here nor the name of a model on the hub") from None
    if answers(constants.ENDPOINT):
        return name
    return str(Path(kept).parent) if isinstance(kept, str) else None


@contextmanager
def or_cache() -> Iterator[None]:
    """Inside, if the hub does not answer, its libraries read what they keep, and do not try for a minute."""
    from huggingface_hub import constants

    places: list[Any] = [constants]
    with suppress(ImportError):
        places.append(import_module("datasets.config"))
    before = [place.HF_HUB_OFFLINE for place in places]
    offline = not answers(constants.ENDPOINT)
    for place, own in zip(places, before, strict=True):
        place.HF_HUB_OFFLINE = own or offline
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = own


def answers(address: str) -> bool:
    """Whether a server answers in time, if ``HF_HUB_OFFLINE`` lets us ask. Looking up its name counts too."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in YES:
        return False
    asked, before = _found.get(address, (-VALID, False))
    if time.monotonic() - asked < VALID:
        return before
    patience, found = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE), list[bool]()

    def ask() -> None:
        from huggingface_hub.utils import get_session

        try:
            get_session().head(address, timeout=patience)
        except Exception:  # of whichever library it speaks HTTP with
            return
        found.append(True)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    _found[address] = time.monotonic(), bool(found)
    return bool(found)
