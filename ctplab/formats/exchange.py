"""Convert prompts to and from the formats of other programs. The lab itself works with the prompt file only.

to / from   what                                            read by
peft        E as PEFT PROMPT_TUNING                         peft, on any compression level of the base
kv          keys and values as PEFT PREFIX_TUNING           peft, on the one checkpoint that computed them
embeds      E alone, ``prompt_embeds`` (k, d)               vLLM (--enable-prompt-embeds) and the like
tokens      rows of the vocabulary (see ``tokens``)         anything that runs the model; here it is only imported
paper       ``best.pth`` of the paper's released code       import only
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ctplab.disk import whole, write_json
from ctplab.errors import InputError
from ctplab.formats import peft, prompt_file, tokens
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.prompts.compiled import compile_prefix, pairs
from ctplab.prompts.prefix import AnyPrefix, KVPrefix, Prefix
from ctplab.text_files import read_json

SIDECAR = "ctplab.json"
"""Holds the provenance beside an export. Other programs ignore it; an import reads it back."""
_CARRIED = ("base", "tag", "corpus", "corpus_fingerprint", "spec")
_CARRIED += ("base_fingerprint", "base_signs", "tokenizer_fingerprint")


def export_prompt(saved: prompt_file.SavedPrompt, out: Path, model: Model, to: str) -> dict[str, Any]:
    """Write ``saved`` for other programs (``to``: peft, kv or embeds). ``model`` is the model it will run on."""
    if to not in ("peft", "kv", "embeds"):
        raise InputError(f"unknown format {to!r}; known are peft, kv and embeds")
    prefix = saved.prefix
    if to == "kv":
        with torch.no_grad():
            prefix = KVPrefix(prefix.name, tuple(pairs(model, compile_prefix(model, prefix))))
    elif isinstance(prefix, KVPrefix):
        raise InputError(f"this prompt consists of keys and values, which have no form as {to}; use to='kv'")
    if to == "embeds":
        with whole(out / "prompt_embeds.safetensors") as temporary:
            save_file({"prompt_embeds": saved.rows()[0].rows.contiguous()}, temporary)
    else:
        peft.write(prefix, out, model, saved.info.get("base"))
    write_json({key: saved.info.get(key) for key in _CARRIED}, out / SIDECAR)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return {"out": str(out), "format": to, "k": prefix.k, "bytes": size}


def import_prompt(
    path: Path,
    out: Path,
    model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    base: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Convert another program's prompt into a prompt folder at ``out``. Returns its manifest.

    ``model``: the model that the prompt was made for. Only the caller can know it, unless our own export recorded it (a
    tokens export does: it may be None then). ``base``: its name. ``source``: peft, kv, paper or tokens; None detects
    it. Raises InputError if the prompt does not fit.
    """
    found = _kind(path)
    if source not in (None, found):
        raise InputError(f"{path} is {found}, not {source}")
    if found == "tokens":
        saved = tokens.read(path)
        if model is not None:
            prompt_file.attach(saved, model, tokenizer)
        return prompt_file.write(saved.prefix, saved.initial, {**saved.info, "imported_from": found}, out)
    if model is None or tokenizer is None:
        raise InputError(f"{path} does not say which model it was made for: give the model")
    prefix, named = _read_paper(path) if found == "paper" else peft.read(path)
    info = {"base": named or base, "claimed": "claimed at import", **prompt_file.made_for(model, tokenizer)}
    info |= {"imported_from": found, **_noted(path)}
    _check(prefix, model, path)
    prompt_file.attach(prompt_file.SavedPrompt(prefix, None, info), model, tokenizer)
    return prompt_file.write(prefix, None, info, out)


def _kind(path: Path) -> str:
    if path.is_file():
        if path.suffix == ".safetensors":
            raise InputError(f"{path} is one file of a folder; give the folder")
        return "paper"
    if (path / peft.CONFIG).exists():
        return peft.kind_of(path)
    if tokens.is_export(path):
        return "tokens"
    if (path / prompt_file.MANIFEST).exists():
        raise InputError(f"{path} is a ctplab prompt already: use it as it is")
    raise InputError(f"no prompt at {path}: give a PEFT folder, or the paper's best.pth")


def _read_paper(path: Path) -> tuple[AnyPrefix, None]:
    """Read ``{"model": {"weight": (k, d)}, "optimizer": ...}`` without running any code from it."""
    try:
        with warnings.catch_warnings():  # torch warns about files that are no checkpoints; they are refused below
            warnings.simplefilter("ignore")
            weight = torch.load(path, map_location="cpu", weights_only=True)["model"]["weight"]
        if weight.layout != torch.strided or weight.device.type != "cpu":
            raise ValueError("its weight is no plain matrix")
        return Prefix("soft", weight.detach().float()), None
    except pickle.UnpicklingError:
        raise InputError(f"{path} is no prompt, or holds more than tensors; nothing of it was run") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is no best.pth of the paper's code: {str(error).split(chr(10))[0]}") from None


def _noted(path: Path) -> dict[str, Any]:
    """The provenance that our own export wrote beside the prompt; empty if the folder comes from elsewhere."""
    if not (path / SIDECAR).exists():
        return {}
    info = read_json(path / SIDECAR)
    noted = {key: info[key] for key in _CARRIED if isinstance(info.get(key), dict if key == "spec" else str)}
    return {"base_signs": None, **noted, "claimed": None} if "tokenizer_fingerprint" in noted else noted


def _check(prefix: AnyPrefix, model: Model, path: Path) -> None:
    tensors = [prefix.rows] if isinstance(prefix, Prefix) else [t for pair in prefix.kv for t in pair]
    if any(t.numel() == 0 or not torch.isfinite(t).all() for t in tensors):
        raise InputError(f"the prompt in {path} is empty or holds NaN or infinite numbers")
    if isinstance(prefix, KVPrefix):
        with torch.no_grad():
            compile_prefix(model, prefix)
        return
    width = embeddings(model).shape[1]
    if prefix.rows.ndim != 2 or prefix.rows.shape[1] != width:
        raise InputError(
            f"the prompt in {path} has the shape {tuple(prefix.rows.shape)}; this model takes (k, {width})"
        )
