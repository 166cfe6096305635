"""The state that learning resumes from after a kill: parameters, optimiser, the best so far and the curve.

It is one sealed safetensors file, replaced atomically. It names its recipe, text and model, and no other run resumes
from it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctplab import parallel, tensor_files
from ctplab.disk import LOG, check_writable, whole, writing
from ctplab.errors import InputError

EACH = 16
"""Bytes of a state for each learned value: as it is, its best, and AdamW's two moments."""


def check_room(path: Path, values: int) -> None:
    """Raise InputError if the disk has no room for the state of so many values, beside the one that it replaces."""
    check_writable(path.parent, EACH * values * (1 if path.exists() else 2))


def save_state(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    identity: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Write the state. Loading compares ``identity`` and returns ``record`` (plain JSON)."""
    tensors = {f"now.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"best.{name}": p for name, p in best.items()}
    for name, p in parameters.items():
        tensors |= {f"adam.{key}.{name}": value for key, value in optimizer.state[p].items()}
    with whole(path) as temporary:
        tensor_files.write_sealed(tensors, {"identity": identity, "record": record}, temporary)


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def load_state(
    path: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Restore parameters and optimiser; returns (best, record).

    None, and nothing restored, if there is no state, if it is damaged or if it is another run's: the last two are told,
    and the other run's is moved aside.
    """
    if not os.path.lexists(path):
        return None
    try:
        tensors, about = tensor_files.read_sealed(path)
    except InputError as error:
        LOG.warning("%s; learning begins anew", error)
        return None
    for what, value in identity.items():
        if about["identity"].get(what) != value:
            aside = path.with_name(f"{path.stem}-{_digest(about['identity'])}{path.suffix}")
            LOG.warning("%s belongs to another %s; it is kept as %s, and learning begins anew", path, what, aside.name)
            if parallel.is_main():
                with writing(aside):
                    os.replace(path, aside)
            return None
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"now.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[p] = {key: tensors[f"adam.{key}.{name}"] for key in keys}
            for key in keys[1:]:
                optimizer.state[p][key] = optimizer.state[p][key].to(p.device)
    best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
    return best, about["record"]
