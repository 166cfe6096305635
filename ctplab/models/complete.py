"""Whether a model's files hold its weights: all of them, as numbers, and nothing that would change what they mean.

One rule for all commands, whichever way the weights are read. transformers itself only warns, fills what is missing
with random numbers, and reads codes as if they were weights.
"""

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ctplab import tensor_files
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.weights import weight_files
from ctplab.text_files import read_json

NUMBERS = ("F64", "F32", "F16", "BF16")
"""How safetensors calls the types in which weights are stored as they are."""
TABLES = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"attn\.(masked_)?bias$")
"""Constants that older files hold and that models now compute."""


def check_numbers(folder: Path) -> None:
    """Raise InputError if the folder's weights are codes with scales beside them: FP8, compressed-tensors, 8 bits."""
    packed = _quantization(folder)
    if packed is not None:
        method = packed.get("quant_method") if isinstance(packed, dict) else packed
        raise InputError(
            f"{folder} holds codes, not weights (quantization_config: {method}); give the full model it was made from"
        )
    for path in weight_files(folder):
        with tensor_files.opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                kind = file.get_slice(name).get_dtype()
                if kind not in NUMBERS and (name.endswith(".weight") or kind.startswith(("F4", "F6", "F8"))):
                    raise InputError(f"{path}: {name} is stored as {kind}: codes, not weights; give the full model")


def _quantization(folder: Path) -> object:
    return read_json(folder / "config.json", finite=False).get("quantization_config")


def check_complete(
    name: str | Path, model: Model, missing: Iterable[str], unexpected: Iterable[str], wrong: Iterable[str] = ()
) -> None:
    """Raise InputError if weights are ``missing`` from the files of the model ``name``, or are ``wrong`` in shape.

    ``unexpected``: tensors that no part of the model reads. Those of parts that it does not have (a vision tower) are
    harmless: a warning names them. One that stands beside a weight that it does have (a scale, a bias) says that the
    weight means more.
    """
    for names, what in ((missing, "weights are missing"), (wrong, "weights have another shape than the model's")):
        if names := sorted(names):
            raise InputError(f"{name}: {what} in its files: {_some(names)}")
    owners = {owner.rpartition(".")[0] for owner, _ in model.named_parameters()}
    ignored = re.compile("|".join((*TABLES, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()))))
    more = [key for key in sorted(unexpected) if not ignored.search(key)]
    prefix = f"{model.base_model_prefix}."
    beside = [key for key in more if {(own := key.rpartition(".")[0]), prefix + own, own.removeprefix(prefix)} & owners]
    if beside:
        raise InputError(
            f"{name}: its files hold {_some(beside)}, which this model does not read: its weights mean something else"
        )
    if more:
        warnings.warn(f"{name}: the model does not read {_some(more)} of its files", stacklevel=2)


def _some(names: Collection[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def untie(config: Any) -> None:
    """Note in ``config`` that the output head is a matrix of its own: the file says so, whatever it said before."""
    for each in {id(part): part for part in (config, getattr(config, "get_text_config", lambda: config)())}.values():
        if getattr(each, "tie_word_embeddings", False):
            each.tie_word_embeddings = False
