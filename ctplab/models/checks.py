"""Answers about a model that are found once, by trying, and kept in the cache with the model's fingerprint."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from ctplab.disk import cache_dir, once
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import TUNED, base_fingerprint

VERSION = 6
"""Raised if a check changes, so that kept answers are found anew."""
MOST = 400
"""How many answers stay: those used last. Each is a file of some hundred bytes."""
UNSEEN = ("_name_or_path", "transformers_version", TUNED)
"""Entries of a configuration that no check depends on."""


def kept_answer(model: Model, what: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``find`` says about ``model``, from the cache if it was asked before.

    An answer depends on the code and the configuration, and the weights are needed to see it. So it is kept for the
    model's class, configuration, embeddings, dtype and kind of device, and for the versions of the libraries.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in UNSEEN}
    table = embeddings(model)
    versions = [VERSION, torch.__version__, transformers.__version__]
    made_from = [what, type(model).__name__, config, base_fingerprint(model), table.device.type, str(table.dtype)]
    digest = hashlib.sha256(json.dumps([versions, made_from], default=str, sort_keys=True).encode()).hexdigest()[:16]
    path, found = cache_dir() / "checks" / f"{digest}.json", list[dict[str, Any]]()

    def find_now() -> dict[str, Any]:
        found.append(find())
        return found[0]

    try:
        answer = once(path, {"made_from": digest}, find_now)
    except InputError:
        if not found:
            raise
        return found[0]  # the cache cannot be written
    with suppress(OSError):
        os.utime(path)  # the last use counts, not the first
        if found:
            drop_oldest(path.parent, MOST)
    return answer


def drop_oldest(folder: Path, most: int) -> None:
    """Delete the files in ``folder`` that were used least recently, until ``most`` stay. Other processes may do so too.

    Raises OSError if the disk refuses.
    """
    ages = list[tuple[int, Path]]()
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process was sooner
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages)[: max(0, len(ages) - most)]:
        path.unlink(missing_ok=True)
