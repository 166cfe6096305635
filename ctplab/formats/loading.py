"""Load any model: embedded, Hugging Face, compressed by ctplab, or compressed by others as GPTQ."""

from pathlib import Path

from ctplab.errors import InputError
from ctplab.formats import checkpoint, gptq
from ctplab.models import Model, Tokenizer
from ctplab.models.loading import dtype_on, load_dense, load_tokenizer, place, resolve, usable


def load(
    name: str | Path, *, device: str | None = None, dtype: str | None = None, packed: bool = False
) -> tuple[Model, Tokenizer]:
    """Load ``atlas``, a Hugging Face folder, a hub id, a GPTQ folder, or a folder that ``save`` wrote.

    ``device`` and ``dtype`` are as for ``load_dense``: without ``dtype`` all models on one device have the same.
    ``packed``: a compressed model runs from its packed weights (small in memory, slower) instead of dense ones.
    Raises InputError if ``name`` is no model, or if ``packed`` is set and it is not packed.
    """
    folder = Path(resolve(name))
    device = usable(device)
    kind = dtype_on(device, dtype)
    if (folder / checkpoint.MANIFEST).exists() or checkpoint.block_file(folder, 0).exists():
        model = checkpoint.load_compressed(folder, kind, packed)
    elif gptq.quantization(folder):
        model = gptq.load_gptq(folder, kind, packed)
    elif packed:
        raise InputError(f"{name} is not packed: give a folder that 'ctplab compress' or a GPTQ program wrote")
    else:
        return load_dense(name, device=device, dtype=dtype)
    model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if empty:
        raise InputError(f"{folder}: tensors are missing: {', '.join(empty[:3])}")
    return place(model.requires_grad_(False), device).eval(), load_tokenizer(folder)
