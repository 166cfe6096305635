"""The prompt file: a folder with ``prompt.safetensors`` (E and its init, fp32) and ``prompt.json`` (provenance).

The manifest is written last. Attaching checks that a prompt fits a model before anything is computed with it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ctplab.compress.checkpoint import write_json
from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer, base_fingerprint, embeddings, tokenizer_fingerprint
from ctplab.prompts.learn import Learned
from ctplab.prompts.prefix import Prefix
from ctplab.specs import SCHEMA, PromptSpec

MANIFEST = "prompt.json"


@dataclass(frozen=True)
class SavedPrompt:
    """A prompt as read from disk."""

    prefix: Prefix
    initial: Prefix
    info: dict[str, Any]


def save(
    out: Path, learned: Learned, spec: PromptSpec, model: Model, tokenizer: Tokenizer, **provenance: Any
) -> dict[str, Any]:
    """Write the best prompt of ``learned``; ``provenance`` adds facts such as base, tag and corpus fingerprint."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        tensors = {"E": learned.prefix.rows.contiguous(), "init": learned.initial.rows.contiguous()}
        save_file(tensors, out / "prompt.safetensors", metadata={"format": "pt"})
        info = {
            "schema": SCHEMA,
            **provenance,
            "base_fingerprint": base_fingerprint(model),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "width": learned.prefix.rows.shape[1],
            "k": learned.prefix.k,
            "spec": spec.to_json(),
            "init_ids": list(learned.initial.ids or ()),
            "best_step": learned.best_step,
            "validation_nll": learned.best_validation,
            "stopped": learned.stopped,
            "curve": [vars(step) for step in learned.steps],
            "versions": {"torch": torch.__version__},
        }
        write_json(out / MANIFEST, info)
    except OSError as error:
        raise InputError(f"cannot write the prompt to {out}: {error.strerror or error}") from error
    return info


def load(folder: str | Path) -> SavedPrompt:
    """Read a prompt folder. Raises InputError where it is missing, unfinished or damaged."""
    folder = Path(folder)
    try:
        info = json.loads((folder / MANIFEST).read_text())
        tensors = load_file(folder / "prompt.safetensors")
        E, initial = tensors["E"].float(), tensors["init"].float()
        ids = tuple(info["init_ids"])
        if E.ndim != 2 or list(E.shape) != [info["k"], info["width"]] or not torch.isfinite(E).all():
            raise ValueError("its rows are not a finite (k, d) matrix")
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no finished prompt: {Path(str(error.filename)).name} is missing") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the prompt in {folder} is damaged: {error}") from None
    return SavedPrompt(Prefix("soft", E, ids), Prefix("init", initial, ids), info)


def attach(prompt: SavedPrompt, model: Model, tokenizer: Tokenizer, *, force: bool = False) -> list[str]:
    """Check that ``prompt`` fits; return what the user should know. Raises InputError where it does not fit."""
    width = embeddings(model).shape[1]
    if prompt.prefix.rows.shape[1] != width:
        raise InputError(f"this prompt has width {prompt.prefix.rows.shape[1]}, the model {width}: they do not fit")
    made_for = prompt.info.get("tokenizer_fingerprint")
    if made_for is None or prompt.info.get("base_fingerprint") is None:
        if not force:
            raise InputError("this prompt does not say which model it was made for; --force uses it all the same")
        return ["the prompt's origin is unknown"]
    if made_for != tokenizer_fingerprint(tokenizer):
        raise InputError("this prompt was learned with another tokenizer: its rows mean nothing to this model")
    notes = []
    if prompt.info["base_fingerprint"] != base_fingerprint(model):
        notes.append(f"the prompt was learned on another base model ({prompt.info.get('base', 'unknown')})")
    return notes
