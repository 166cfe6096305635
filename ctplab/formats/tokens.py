"""A prompt as tokens of the vocabulary: a plain Hugging Face folder that runs wherever its architecture runs.

config.json, model.safetensors     the model with k more rows (token_rows.py), dense or as GPTQ
tokenizer.json, chat template      put the k tokens in front (token_front.py)
generation_config.json             suppresses them, for readers that look
prompt/                            the prompt file as it was: its rows in fp32, its provenance
README.md                          how to use the folder, and what attaching warned of
soft_tokens.json                   what was made of what; written last
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctplab import tensor_files
from ctplab.disk import whole_folder, write_json, write_text
from ctplab.errors import InputError
from ctplab.formats import checkpoint, gptq, prompt_file, token_front, token_readme, token_rows
from ctplab.formats.loading import load
from ctplab.machine import versions
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_context
from ctplab.models.loading import load_config, local_folder
from ctplab.prompts.prefix import Prefix
from ctplab.specs import SCHEMA
from ctplab.text_files import expect, read_json

MANIFEST = "soft_tokens.json"
PROMPT = "prompt"
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class _Source:
    """A model that runs, and the tensors that its checkpoint will consist of."""

    model: Model
    tensors: dict[str, Tensor]
    gptq: dict[str, Any] | None
    """``quantization_config`` if the tensors are GPTQ's."""
    tag: str


def export_tokens(
    saved: prompt_file.SavedPrompt,
    model: str | Path,
    out: Path,
    *,
    weights: str = "dense",
    prepend: str = "always",
    pad_to: int = 64,
    reserved: bool = False,
    dtype: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write ``model`` with the prompt's k rows as k tokens into the new folder ``out``; returns its manifest.

    ``weights``: dense, gptq or gptq_v2. ``prepend``: always, or never, which leaves the tokens to the caller.
    ``pad_to``: the number of rows becomes a multiple of it. ``reserved``: tokens that the vocabulary keeps free are
    used first. ``dtype``: of all that is not packed, float16 by default. ``force``: as for ``attach``. Raises
    InputError, and leaves nothing behind, if the prompt, the model or the disk does not allow it.
    """
    for name, value, known in (("weights", weights, gptq.FORMATS), ("prepend", prepend, ("always", "never"))):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}; known are {', '.join(known)}")
    if (dtype or "float16") not in DTYPES or (weights != "dense" and dtype not in (None, "float16")):
        raise InputError(f"dtype {dtype!r} is not known for {weights} weights")
    if pad_to < 1:
        raise InputError(f"pad_to must be at least 1, not {pad_to}")
    if not isinstance(saved.prefix, Prefix):
        raise InputError("this prompt consists of keys and values, which have no form as tokens; use to='kv'")
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it")
    home = local_folder(model)
    with whole_folder(out) as folder:
        source, tokenizer = _read(home, weights)
        notes = prompt_file.attach(saved, source.model, tokenizer, tag=source.tag, force=force)
        check_context(source.model, saved.prefix.k, 1)
        known = _special_ids(source.model.config, _generation(home))
        backend, soft = token_front.added(tokenizer, saved.prefix.k, reserved=reserved, taken=known)
        about = _grow(source, saved.prefix, list(soft.values()), pad_to, known)
        _write_model(source, folder, dtype or "float16", _generation(home), about["silent"])
        token_front.write(tokenizer, backend, soft, folder, prepend)
        notes += token_front.check(folder, tokenizer, soft, prepend)
        prompt_file.write(saved.prefix, saved.initial, saved.info, folder / PROMPT)
        manifest = {
            "schema": SCHEMA,
            "model": str(model),
            "tag": source.tag,
            **{f"prompt_{key}": saved.info.get(key) for key in ("base", "tag", "corpus", "corpus_fingerprint")},
            "k": saved.prefix.k,
            "tokens": list(soft),
            "ids": list(soft.values()),
            "prepend": prepend,
            "weights": weights,
            "dtype": dtype or "float16",
            **about,
            "warnings": notes,
            "versions": versions("torch", "transformers", "tokenizers"),
        }
        write_text(token_readme.text(manifest, tokenizer), folder / "README.md")
        write_json(manifest, folder / MANIFEST)
    return {**manifest, "out": str(out), "bytes": (out / "model.safetensors").stat().st_size}


def _read(folder: Path, weights: str) -> tuple[_Source, Tokenizer]:
    """The model in ``folder`` with tensors of the kind that ``weights`` says."""
    stated = gptq.quantization(folder)
    if (folder / checkpoint.MANIFEST).exists():
        _, tensors, spec = gptq.converted(folder, weights)
        model, tokenizer = load(folder, device="cpu", packed=True)
        return _Source(
            model, tensors, None if weights == "dense" else gptq.settings(spec, weights), spec.tag
        ), tokenizer
    if stated is not None:
        found = stated.get("checkpoint_format") or stated.get("format") or "gptq"
        if weights not in ("dense", found):
            raise InputError(f"{folder} holds {found} weights: they can be {found} or dense")
        model, tokenizer = load(folder, device="cpu", packed=weights != "dense")
        if weights == "dense":
            return _Source(model, dict(model.state_dict()), None, f"w{stated['bits']}"), tokenizer
        tensors = {
            name: t for path in sorted(folder.glob("*.safetensors")) for name, t in tensor_files.read(path).items()
        }
        return _Source(model, tensors, stated, f"w{stated['bits']}"), tokenizer
    if weights != "dense":
        raise InputError(f"{folder} is not quantised: its weights can only be dense")
    own = str(getattr(load_config(folder), "dtype", None)).removeprefix("torch.")  # fingerprints are of these values
    model, tokenizer = load(folder, device="cpu", dtype=own if own in DTYPES else "float32")
    return _Source(model, dict(model.state_dict()), None, "full"), tokenizer


def _grow(source: _Source, prefix: Prefix, ids: list[int], pad_to: int, known: dict[int, str]) -> dict[str, Any]:
    """Put the rows in and untie the head; returns what the manifest should say of it."""
    names, tensors = token_rows.tables(source.model), source.tensors
    table, head = tensors[names.embedding], tensors.get(names.head, tensors[names.embedding])
    if used := sorted(set(ids) & known.keys()):
        raise InputError(f"row {used[0]}, where a soft token would go, is in use: it is the model's {known[used[0]]}")
    size = -(-max(len(table), max(ids) + 1) // pad_to) * pad_to
    factor = token_rows.scale(source.model)
    expected = token_rows.log_probabilities(source.model, prefix)
    quiet = token_rows.quietest(expected, ids)
    silent = token_rows.never_chosen(ids, len(table), size)
    tensors[names.embedding] = token_rows.with_rows(table, prefix.rows / factor, ids, size)
    tensors[names.head] = token_rows.with_silent_rows(head, quiet, ids, size)
    if names.bias is not None:
        tensors[names.bias] = token_rows.with_silent_biases(tensors[names.bias], ids, size)
    config = source.model.config.get_text_config()
    tied = bool(config.tie_word_embeddings)
    for each in (config, source.model.config):
        each.vocab_size, each.tie_word_embeddings = size, False
    return {
        "embedding": names.embedding,
        "scale": factor,
        "rows": {"before": len(table), "after": size},
        "head": "untied" if tied else "its own",
        "silent": silent,
        "probability": len(silent) * float(expected[:, quiet].mean(1).max().exp()),
    }


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _special_ids(config: Any, generation: dict[str, Any]) -> dict[int, str]:
    """Ids that the model's settings give a role -> the name of the setting."""
    found: dict[int, str] = {}
    for settings in (config.to_dict(), config.get_text_config().to_dict(), generation):
        for key, value in settings.items():
            if key.endswith(("_token_id", "_token_ids", "_token_index")):
                found |= {i: key for i in (value if isinstance(value, list) else [value]) if type(i) is int}
    return found


def _write_model(source: _Source, folder: Path, dtype: str, generation: dict[str, Any], silent: list[int]) -> None:
    kind = getattr(torch, dtype)
    tensors = {name: t.to(kind) if t.is_floating_point() else t for name, t in source.tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name} does not fit into {dtype}; use dtype='bfloat16'")
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    source.model.config.save_pretrained(folder)
    config = read_json(folder / "config.json", finite=False)
    config["dtype"] = config["torch_dtype"] = dtype  # the second is what older readers look for
    if source.gptq is not None:
        config["quantization_config"] = source.gptq
        write_json(source.gptq, folder / "quantize_config.json")
    write_json(config, folder / "config.json")
    ends = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ends["pad_token_id"] = ends["pad_token_id"] or ends["eos_token_id"]
    settings = {key: value for key, value in ends.items() if value is not None} | generation
    settings["suppress_tokens"] = sorted({*settings.get("suppress_tokens", ()), *silent})
    write_json(settings, folder / "generation_config.json")


def is_export(folder: Path) -> bool:
    """Whether :func:`export_tokens` wrote ``folder``."""
    return (folder / MANIFEST).exists()


def read(folder: Path) -> prompt_file.SavedPrompt:
    """The prompt of a folder that :func:`export_tokens` wrote, bit for bit.

    Raises InputError if it is damaged, or if the model's rows are no longer those of the prompt.
    """
    manifest, saved = read_json(folder / MANIFEST), prompt_file.load(folder / PROMPT)
    try:
        expect(manifest, embedding=str, scale=float, ids=list)
        with tensor_files.opened(folder / "model.safetensors") as file:
            table = file.get_slice(manifest["embedding"])
            found = torch.cat([table[i : i + 1] for i in manifest["ids"]])
        same = torch.equal(found, (saved.rows()[0].rows / manifest["scale"]).to(found.dtype))
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} is damaged: {str(error).splitlines()[0]}") from None
    if not same:
        raise InputError(f"the soft tokens' rows in {folder} were changed: they are not those of {PROMPT}/ any more")
    return saved
