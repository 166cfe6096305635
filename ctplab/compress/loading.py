"""Load any model: embedded, Hugging Face, compressed by ctplab, or compressed by others as GPTQ."""

from pathlib import Path

import torch

from ctplab.compress import checkpoint, gptq_format
from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer, default_device, load_dense, load_tokenizer, resolve


def load(
    name: str | Path, *, device: str | None = None, dtype: str | None = None, packed: bool = False
) -> tuple[Model, Tokenizer]:
    """Load ``atlas``, a Hugging Face folder, a hub id, a GPTQ folder, or a folder that ``save`` wrote.

    ``dtype``: by default float32 on a CPU, on a GPU the file's own (bfloat16 where the weights are packed).
    ``packed``: a compressed model runs from its packed weights (small in memory, slower) instead of dense ones.
    """
    folder = Path(resolve(name))
    device = device or default_device()
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    if (folder / checkpoint.MANIFEST).exists() or checkpoint.block_file(folder, 0).exists():
        model = checkpoint.load_compressed(folder, kind, packed)
    elif gptq_format.quantization(folder):
        model = gptq_format.load_gptq(folder, kind, packed)
    else:
        return load_dense(name, device=device, dtype=dtype)
    model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if empty:
        raise InputError(f"{folder}: tensors are missing: {', '.join(empty[:3])}")
    return model.requires_grad_(False).to(device).eval(), load_tokenizer(folder)
