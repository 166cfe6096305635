"""The prompt file: a folder with ``prompt.safetensors`` (fp32) and ``prompt.json`` (provenance), written last.

prompt.safetensors   E (k, d) and, if known, init (k, d); or key.0, value.0, ... (1, heads, k, head_dim) per layer
prompt.json          base, tokenizer and corpus with their fingerprints, compression tag, recipe, scores, versions;
                     ``copies``: fingerprints of the very weights that it was learned through;
                     ``drawn``: how many more copies were compressed as learning went, and not kept;
                     ``cut``: which rows of a longer prompt these are, if it is one that was cut

:func:`attach` checks that a prompt fits a model before anything is computed with it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctplab import tensor_files
from ctplab.disk import whole
from ctplab.errors import InputError
from ctplab.machine import versions
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import base_facts, copy_fingerprint, one_base, tokenizer_fingerprint
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.prefix import AnyPrefix, KVPrefix, Prefix, only
from ctplab.specs import SCHEMA
from ctplab.text_files import read_json

MANIFEST = "prompt.json"
TENSORS = "prompt.safetensors"

_TEXT = ("base", "tag", "corpus", "corpus_fingerprint", "claimed")
_TEXT += ("base_fingerprint", "base_signs", "tokenizer_fingerprint")
"""Manifest entries that are text, or absent if unknown."""


@dataclass(frozen=True)
class SavedPrompt:
    """A prompt as read from disk."""

    prefix: AnyPrefix
    initial: Prefix | None
    """The rows that the prompt started from; None if unknown."""
    info: dict[str, Any]

    def rows(self) -> tuple[Prefix, Prefix]:
        """The learned rows and their start. If the start is unknown it is the rows themselves, which show no drift."""
        if not isinstance(self.prefix, Prefix):
            raise InputError("this prompt consists of keys and values: it has no rows in the embedding space")
        return self.prefix, self.initial or Prefix("init", self.prefix.rows)


def made_for(model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """The facts about model and tokenizer that :func:`attach` checks."""
    return {
        **base_facts(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "width": embeddings(model).shape[1],
    }


def write(prefix: AnyPrefix, initial: AnyPrefix | None, info: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write a prompt folder. If the disk is full, the folder stays as it was: it never holds half a prompt.

    Returns the manifest. Raises InputError if the disk refuses.
    """
    start = initial if isinstance(initial, Prefix) else None
    info = {
        "schema": SCHEMA,
        **info,
        "kind": "rows" if isinstance(prefix, Prefix) else "kv",
        "k": prefix.k,
        "init_ids": list(start.ids or ()) if start else [],
        "versions": versions("torch", "transformers"),
    }
    tensors = {} if start is None else {"init": start.rows}
    if isinstance(prefix, Prefix):
        tensors["E"] = prefix.rows
    else:
        for layer, (keys, values) in enumerate(prefix.kv):
            tensors |= {f"key.{layer}": keys, f"value.{layer}": values}
    fp32 = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    with whole(out / MANIFEST) as manifest, whole(out / TENSORS) as file:  # the tensors come first, the manifest last
        save_file(fp32, file, metadata={"format": "pt"})
        manifest.write_text(json.dumps(info, indent=1) + "\n")
        (out / MANIFEST).unlink(missing_ok=True)  # from here on nothing can run out of space
    return info


_OF_THE_WHOLE = (
    "schema",
    "kind",
    "k",
    "init_ids",
    "versions",
    "best_step",
    "validation_nll",
    "stopped",
    "curve",
    "warnings",
)
"""Manifest entries that a prompt that is cut shorter does not inherit, or that writing it makes anew."""


def shorter(saved: SavedPrompt, rows: Sequence[int], **how: Any) -> SavedPrompt:
    """The prompt that keeps only ``rows``, in their old order; its manifest says what it was cut from and ``how``.

    Raises InputError for numbers that are no rows.
    """
    kept = sorted(set(rows))
    prefix = only(saved.prefix, kept)
    initial = None if saved.initial is None else only(saved.initial, kept)
    info = {key: value for key, value in saved.info.items() if key not in _OF_THE_WHOLE}
    info["cut"] = {"of": saved.prefix.k, "rows": kept, **how}
    return SavedPrompt(prefix, initial if isinstance(initial, Prefix) else None, info)


def load(folder: str | Path) -> SavedPrompt:
    """Read a prompt folder. Raises InputError if it is missing, unfinished or damaged."""
    folder = Path(folder)
    for name in (MANIFEST, TENSORS):
        if not os.path.lexists(folder / name):
            raise InputError(f"{folder} is no finished prompt: {name} is missing")
    try:
        info = read_json(folder / MANIFEST)
        _check_manifest(info)
        return _build(info, tensor_files.read(folder / TENSORS, finite=True))
    except (ValueError, KeyError) as error:
        raise InputError(f"the prompt in {folder} is damaged: {str(error).splitlines()[0]}") from None


def _check_manifest(info: dict[str, Any]) -> None:
    if info.get("schema") != SCHEMA:
        raise ValueError(f"schema {info.get('schema')!r} is not {SCHEMA}, which this ctplab reads")
    if not isinstance(info.get("copies", []), list) or any(type(c) is not str for c in info.get("copies", [])):
        raise ValueError("copies is no list of fingerprints")
    if type(info.get("drawn", 0)) is not int or info.get("drawn", 0) < 0:
        raise ValueError(f"drawn is {info['drawn']!r}, no number of copies")
    for key in ("k", "width"):
        if type(info.get(key)) is not int or info[key] < 1:
            raise ValueError(f"{key} is {info.get(key)!r}, not a positive number")
    for key in _TEXT:
        if not isinstance(info.get(key), str | None):
            raise ValueError(f"{key} is no text")
    if not isinstance(info.get("init_ids"), list) or any(type(i) is not int for i in info["init_ids"]):
        raise ValueError("init_ids is no list of token ids")
    curve = info.get("curve") or []
    if not isinstance(curve, list) or not all(map(_is_step, curve)):
        raise ValueError("its curve is no list of steps with their losses")
    if info.get("kind", "rows") not in ("rows", "kv"):
        raise ValueError(f"kind {info['kind']!r} is neither rows nor kv")


def _is_step(entry: Any) -> bool:
    """Whether this is a step of a learning curve: its number, and a validation if there was one."""
    return (
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and isinstance(entry.get("validation", ""), int | float | None)
    )


def _build(info: dict[str, Any], tensors: dict[str, Tensor]) -> SavedPrompt:
    """Build the prompt from its parts. Raises ValueError or KeyError if they do not fit together."""
    k, ids = info["k"], tuple(info["init_ids"])
    if any(not t.is_floating_point() for t in tensors.values()):
        raise ValueError("it holds tensors that are no floats")
    if ids and len(ids) != k:
        raise ValueError(f"{len(ids)} init_ids for {k} rows")
    initial = None
    if "init" in tensors:
        if tensors["init"].shape != (k, info["width"]):
            raise ValueError(f"init is no ({k}, {info['width']}) matrix")
        initial = Prefix("init", tensors["init"].float(), ids)
    if info.get("kind", "rows") == "rows":
        if tensors["E"].shape != (k, info["width"]):
            raise ValueError(f"E has the shape {tuple(tensors['E'].shape)}, not (k, width) = ({k}, {info['width']})")
        return SavedPrompt(Prefix("soft", tensors["E"].float(), ids), initial, info)
    layers = sum(name.startswith("key.") for name in tensors)
    kv = tuple((tensors[f"key.{i}"].float(), tensors[f"value.{i}"].float()) for i in range(layers))
    if not kv or any(t.ndim != 4 or t.shape[0] != 1 or t.shape[2] != k for pair in kv for t in pair):
        raise ValueError(f"its keys and values are not (1, heads, {k}, head_dim) in every layer")
    return SavedPrompt(KVPrefix("soft", kv), initial, info)


def attach(
    prompt: SavedPrompt, model: Model, tokenizer: Tokenizer, *, tag: str | None = None, force: bool = False
) -> list[str]:
    """Check that ``prompt`` fits the model, and return notes for the user. Raises InputError if it does not fit.

    ``tag``: the model's compression level, if known. Another level, another compression to this level, or another base
    model with equal tokenizer and width, is accepted with a note. Another width or tokenizer is refused. ``force``
    accepts an unknown origin.
    """
    info = prompt.info
    origin = info.get("base") or "a model that it does not name"
    this = getattr(model.config, "name_or_path", "") or type(model).__name__
    width = embeddings(model).shape[1]
    if isinstance(prompt.prefix, KVPrefix):
        with torch.no_grad():
            compile_prefix(model, prompt.prefix)  # refuses other layers or heads
    elif prompt.prefix.rows.shape[1] != width:
        raise InputError(
            f"this prompt has width {prompt.prefix.rows.shape[1]}, the model {width}: it was made for {origin}, and "
            f"this is {this}"
        )
    known = info.get("tokenizer_fingerprint"), info.get("base_fingerprint")
    if None in known:
        if not force:
            raise InputError(
                "this prompt does not say which model and tokenizer it was made for; force=True uses it all the same"
            )
        return ["the prompt's origin is unknown: nobody checked that it was made for this model"]
    if known[0] != tokenizer_fingerprint(tokenizer):
        raise InputError(
            f"this prompt was made for {origin}, which has another tokenizer than {this}: its rows mean nothing here"
        )
    notes = []
    if not one_base(info, base_facts(model)):
        notes.append(f"the prompt was made for another base model ({origin}) of equal width and tokenizer")
    elif tag is not None and info.get("tag") not in (None, tag):
        notes.append(
            f"the prompt was learned on {info['tag']} and is used on {tag}, the same base model: a prompt of another "
            "level often does harm"
        )
    elif info.get("copies") and copy_fingerprint(model) not in info["copies"]:
        notes.append(_other_copy(len(info["copies"]) + info.get("drawn", 0)))
    elif tag not in (None, "full") and tag == info.get("tag") and not info.get("copies"):
        notes.append(
            "the prompt does not say through which compression it was learned; on another one than its own, even to "
            "this level, most of what it wins is lost"
        )
    if info.get("claimed"):
        notes.append(f"where the prompt comes from was {info['claimed']}, not recorded when it was learned")
    return notes


def _other_copy(n: int) -> str:
    """What to expect of a prompt on weights that it was not learned through; ``n``: how many it was."""
    if n == 1:
        return (
            "the prompt was learned through another compression of this model to this level: most of what it wins "
            "there is lost here, until it learns on through these weights"
        )
    return (
        f"the prompt was learned through {n} other compressions of this model in turn, not through these weights: it "
        "wins less here, until it learns on through them"
    )
