"""Load a Hugging Face model by folder, hub id or the lab's own name, and place it on a device."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ctplab.disk import data_dir
from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer, hub, known
from ctplab.models.anatomy import blocks
from ctplab.models.complete import check_complete, check_numbers, untie
from ctplab.models.weights import check_config, weight_files

DTYPES = ("float32", "bfloat16", "float16")
FIRST_BFLOAT16 = (8, 0)
"""The compute capability of the first GPUs with bfloat16 arithmetic (NVIDIA Ampere)."""


def resolve(name: str | Path) -> str:
    """Turn ``atlas`` and fetched models (``smollm2``) into their folders. Any other name is a folder or a hub id.

    Raises InputError with the command that fetches a known model if it is not here.
    """
    if str(name) == "atlas":
        return str(data_dir() / "model")
    return str(known.fetched(str(name))) if str(name) in known.MODELS else str(name)


def default_device() -> str:
    """``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable(device: str | None) -> str:
    """Check ``device``; None stands for the default one, and ``auto`` for the CPU on a machine without a GPU.

    Raises InputError if this machine has no such device.
    """
    if device is None or (device == "auto" and default_device() == "cpu"):
        return default_device()
    if device == "auto":
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        reason = shorten(str(error).split("\n")[0], 120, placeholder="...")
        raise InputError(f"cannot use the device {device!r} ({reason}); try device='cpu'") from None
    return device


def default_dtype(device: str) -> str:
    """The dtype of all that is loaded onto ``device``, a :func:`usable` one. Arms that are compared must share it.

    It is ``float32`` on a CPU and ``bfloat16`` on a GPU, or ``float16`` if a card has no bfloat16.
    """
    if device.startswith("cpu"):
        return "float32"
    cards = range(torch.cuda.device_count()) if device == "auto" else [device] if device.startswith("cuda") else []
    return "bfloat16" if all(torch.cuda.get_device_capability(card) >= FIRST_BFLOAT16 for card in cards) else "float16"


def dtype_on(device: str, dtype: str | None) -> torch.dtype:
    """Give ``dtype``, or the default one of ``device``, as torch's. Raises InputError if it is none of DTYPES."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return getattr(torch, dtype or default_dtype(device))


def place(model: Model, device: str) -> Model:
    """Move the model to ``device``; ``auto`` spreads its blocks over all GPUs.

    Raises InputError if the GPUs cannot hold it.
    """
    if device != "auto":
        return model.to(device)
    from accelerate import dispatch_model, infer_auto_device_map

    kinds = sorted({type(block).__name__ for _, block in blocks(model)})
    where = infer_auto_device_map(model, no_split_module_classes=kinds)
    if {"cpu", "disk"} & {str(part) for part in where.values()}:
        raise InputError("the model does not fit into the GPUs; compress it, or use packed=True or device='cpu'")
    return dispatch_model(model, where)


def check_name(name: str | Path) -> str:
    """Resolve ``name`` to a folder, or to the id of a model on the hub if that answers. Raises InputError otherwise."""
    path = resolve(name)
    names = ", ".join(("atlas", *known.MODELS))
    if not Path(path).is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise InputError(
                f"no model folder at {path!r}; give a folder with config.json, a hub id, or one of {names}"
            )
        if (found := hub.find(path)) is None:
            raise InputError(
                f"no model folder at {path!r}, and the model hub does not answer from here; give a folder with "
                f"config.json, or one of {names}"
            )
        return found
    if not (Path(path) / "config.json").exists():
        raise InputError(f"{path} has no config.json: it is not a Hugging Face model folder")
    check_config(Path(path))
    return path


def local_folder(name: str | Path) -> Path:
    """The folder ``name`` itself, or after a download the folder that holds the hub's files."""
    path = check_name(name)
    if Path(path).is_dir():
        weight_files(Path(path))
        return Path(path)
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        folder = Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # network, missing repository, no permission: one line
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot get the model {str(name)!r} from the hub: {reason}") from error
    weight_files(folder)
    return folder


def load_dense(name: str | Path, *, device: str | None = None, dtype: str | None = None) -> tuple[Model, Tokenizer]:
    """Load an uncompressed causal LM and its tokenizer from a folder or the hub.

    ``device``: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for all GPUs together. ``dtype``: ``float32``, ``bfloat16``
    or ``float16``. The default is :func:`default_dtype`, whatever the file's own dtype.
    No code from the repository is run. Raises InputError with one line if nothing can be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    path = check_name(name)
    if Path(path).is_dir():
        weight_files(Path(path))
    device = usable(device)
    kind = dtype_on(device, dtype)
    logging.disable_progress_bar()
    if Path(path).is_dir():
        check_numbers(Path(path))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on missing weights takes many lines; ours says the same in one
    try:
        tokenizer = load_tokenizer(path)
        found: Any = AutoModelForCausalLM.from_pretrained(  # with output_loading_info, a pair
            path, dtype=kind, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        model, read = found
    except InputError:
        raise
    except Exception as error:  # transformers raises a dozen types here; the user needs one line
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the model {str(name)!r}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    check_complete(
        name, model, read["missing_keys"], read["unexpected_keys"], (key[0] for key in read["mismatched_keys"])
    )
    head = model.get_output_embeddings()
    if head is not None and getattr(head, "weight", None) is not model.get_input_embeddings().weight:
        untie(model.config)
    model.requires_grad_(False)
    return place(model, device).eval(), tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a model folder. Raises InputError with one line if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a", verbose=False)  # settings of wrong types show themselves here
        return tokenizer
    except Exception as error:  # as for models
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the tokenizer of {folder}: {reason}") from error


def load_config(name: str | Path) -> Any:
    """Load the configuration of a model, without its weights. Raises InputError with one line if there is none."""
    from transformers import AutoConfig

    path = check_name(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # as for models
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot read the configuration of {name}: {reason}") from error


def skeleton(folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """The model that ``folder`` describes, with parameters on the meta device (no memory yet) and real buffers.

    Raises InputError with one line if it is no causal language model that transformers knows.
    """
    from transformers import AutoConfig

    try:
        return empty_model(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype)
    except Exception as error:  # as for models
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the model {str(folder)!r}: {reason}") from error


def empty_model(config: Any, dtype: torch.dtype = torch.float32) -> Model:
    """As :func:`skeleton`, from a configuration."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    if hasattr(config, "quantization_config"):  # ctplab reads packed weights itself
        delattr(config, "quantization_config")
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    return model.requires_grad_(False).eval()
