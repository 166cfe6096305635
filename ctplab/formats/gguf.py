"""A GGUF file (llama.cpp's) as a plain Hugging Face folder, with nothing lost on the way.

transformers reads the file and ``gguf`` its header. What the one read is held against what the other counts: a tensor
or a setting that the result would not have is refused (``gguf_checks``), and so is a tokenizer that would split text
otherwise (``gguf_tokenizer``).
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctplab.disk import whole_folder
from ctplab.errors import InputError
from ctplab.formats import gguf_checks
from ctplab.formats.gguf_checks import Header
from ctplab.formats.gguf_tokenizer import read_tokenizer
from ctplab.models import Model, Tokenizer
from ctplab.models.loading import empty_model
from ctplab.models.origin import SOURCE
from ctplab.progress import Progress, bar

#: Control tokens that end a turn under the chat templates of the models that can be read.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def import_model(file: str | Path, out: str | Path, *, progress: Progress = bar) -> dict[str, Any]:
    """Write the model in ``file`` to the new folder ``out``: safetensors, tokenizer, chat template, generation config.

    Tensors are dequantised and kept in the smallest of float16, bfloat16 and float32 that holds all of them exactly.
    Returns what ``config.json`` keeps as ``ctplab_source``: file name, SHA-256, and how many tensors of each type.
    Takes memory for the model in float32, twice. ``out`` is complete or absent.
    Raises InputError if ``out`` exists, and if the file is no GGUF, is damaged, or cannot be read without loss.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it")
    header = gguf_checks.read(file)
    with tempfile.TemporaryDirectory() as folder, whole_folder(out) as unfinished:
        alone = Path(folder) / "model.gguf"  # transformers would also read what lies beside the file
        alone.symlink_to(file.resolve())
        found: dict[str, Any] = {}
        steps: dict[str, Callable[[], Any]] = {
            "header": lambda: _config(alone, header),
            "tokenizer": lambda: read_tokenizer(alone, header),
            "weights": lambda: _model(alone, header, found["header"]),
            "checksum": lambda: sha256(file),
        }
        for name in progress(steps, total=len(steps), label=f"import {file.name}"):
            try:
                found[name] = steps[name]()
            except InputError:
                raise
            except Exception as error:  # transformers and a damaged file raise a dozen types; the user needs one line
                reason = str(error).strip().split("\n")[0]
                raise InputError(f"cannot read {file.name}: {type(error).__name__} {reason}") from error
        source = {
            "file": file.name,
            "sha256": found["checksum"],
            "tensor_types": dict(Counter(header.tensors.values())),
        }
        _write(found["weights"], found["tokenizer"], _ends(found["tokenizer"], header), source, unfinished)
    return source


def sha256(file: Path) -> str:
    """64 hex digits over the file's bytes. Raises InputError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


def _config(file: Path, header: Header) -> Any:
    """The configuration that transformers makes of the file, checked against the file's own words."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    config.__dict__.pop("_model_name_or_path", None)  # the file's own title, which is no place
    gguf_checks.take_rope(header, config)
    gguf_checks.check_settings(header, config)
    gguf_checks.check_names(header, config)
    return config


def _model(file: Path, header: Header, config: Any) -> Model:
    """A plain model with the file's weights, float32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
    )
    read, told = loaded
    if wrong := sorted(str(name) for names in told.values() for name in names):
        raise InputError(f"{header.file.name}: {len(wrong)} tensors do not fit the model, the first is {wrong[0]}")
    state: dict[str, Tensor] = read.state_dict()
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{header.file.name} is damaged: {broken[0]} holds NaN or infinite numbers")
    model = empty_model(config)  # one that does not think it is quantised
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


def _smallest_exact(model: Model) -> torch.dtype:
    """The smallest dtype in which all parameters keep their values."""
    for kind in (torch.float16, torch.bfloat16):
        if all(torch.equal(p.to(kind).float(), p) for p in model.parameters()):
            return kind
    return torch.float32


def _write(model: Model, tokenizer: Tokenizer, ends: list[int], source: dict[str, Any], folder: Path) -> None:
    from transformers import GenerationConfig

    setattr(model.config, SOURCE, source)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(_smallest_exact(model)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _ends(tokenizer: Tokenizer, header: Header) -> list[int]:
    """Ids at which an answer ends: the text's end, and the turn's as the file or its chat template names it."""
    template, vocabulary = tokenizer.chat_template or "", tokenizer.get_vocab()
    ends = {vocabulary[token] for token in END_OF_TURN if token in template and token in vocabulary}
    return sorted({*ends, tokenizer.eos_token_id, header.metadata.get("tokenizer.ggml.eot_token_id")} - {None})
