"""Answers about a model that are found once, by trying, and kept in the cache with the model's fingerprint."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
import transformers

from ctplab.disk import cache_dir, once
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import TUNED, base_fingerprint

VERSION = 3
"""Raised if a check changes, so that kept answers are found anew."""
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
    try:
        return once(cache_dir() / "checks" / f"{digest}.json", {"made_from": digest}, find)
    except InputError:  # the cache cannot be written
        return find()
