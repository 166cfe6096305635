"""The state that learning resumes from after a kill: parameters, optimiser, the best so far and the curve.

It is one safetensors file, replaced atomically. It names its recipe, text and model, and no other run resumes from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctplab.disk import whole
from ctplab.errors import InputError


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
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as temporary:
        save_file(plain, temporary, metadata={"state": json.dumps({"identity": identity, "record": record})})


def load_state(
    path: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore parameters and optimiser; returns (best, record). Raises InputError if the file is another run's."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        kept, record = state["identity"], state["record"]
    except Exception as error:
        raise InputError(f"{path} is damaged; delete it to start afresh") from error
    for what, value in identity.items():
        if kept.get(what) != value:
            raise InputError(f"{path} belongs to another {what}; give another output folder or delete it")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"now.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[p] = {key: tensors[f"adam.{key}.{name}"] for key in keys}
            for key in keys[1:]:
                optimizer.state[p][key] = optimizer.state[p][key].to(p.device)
    return {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}, record
