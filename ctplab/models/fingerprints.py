"""Tell models, tokenizers and tensors apart by 16 hex digits."""

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import as_matrix, blocks, embeddings, is_packed, linears

Seen = list[tuple[ref[Tensor], int, int]]
"""Every tensor of a set: a weak reference, its address, and its number of writes."""

TUNED = "ctplab_tuned"
"""Key of ``config.json``: the fingerprint of what was learned, if a compressed model was tuned (``formats/tuned``)."""

_known: WeakKeyDictionary[Model, tuple[Seen | None, str]] = WeakKeyDictionary()


def see(tensors: list[Tensor]) -> Seen | None:
    """What tells later whether any of ``tensors`` was replaced, moved or written to.

    None if that cannot be told: tensors made under ``torch.inference_mode`` do not count their writes.
    """
    if any(t.is_inference() for t in tensors):
        return None
    return [(ref(t), t.data_ptr(), t._version) for t in tensors]


def unchanged(seen: Seen | None, tensors: list[Tensor]) -> bool:
    """Whether ``tensors`` are the very ones of ``seen``, as they were then."""
    return (
        seen is not None
        and len(seen) == len(tensors)
        and all(
            kept() is t and address == t.data_ptr() and version == t._version
            for (kept, address, version), t in zip(seen, tensors, strict=True)
        )
    )


def tensor_fingerprint(*tensors: Tensor) -> str:
    """16 hex digits over shapes, dtypes and every value."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps([list(tensor.shape), str(tensor.dtype)]).encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def text_fingerprint(*texts: str) -> str:
    """16 hex digits over texts, their order and their borders."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def weights_fingerprint(model: Model) -> str:
    """16 hex digits over all parameters and buffers: packed codes and adapters too. Computed again once one changed."""
    tensors = [*model.parameters(), *model.buffers()]
    seen, found = _known.get(model, (None, ""))
    if not unchanged(seen, tensors):
        found = tensor_fingerprint(*tensors)
        _known[model] = see(tensors), found
    return found


def base_fingerprint(model: Model) -> str:
    """Identify the uncompressed base model by its embeddings, which compression never touches.

    Prompt files hold it. So it samples rows (256 to 511 of a larger table), and takes them in fp32, as it always did.
    """
    table = embeddings(model).detach()
    digest = hashlib.sha256(json.dumps(list(table.shape)).encode())
    digest.update(table[:: max(1, table.shape[0] // 256)].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def base_facts(model: Model) -> dict[str, str]:
    """What manifests hold about the base model: its :func:`base_fingerprint`, and signs of the same rows.

    Half precision changes values and no sign. So the signs tell that a prompt learned in float32 on a CPU fits the
    same model in bfloat16 on a GPU, and the other way round.
    """
    table = embeddings(model).detach()
    signs = table[:: max(1, table.shape[0] // 256)].signbit()
    return {"base_fingerprint": base_fingerprint(model), "base_signs": tensor_fingerprint(signs)}


def one_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two manifests, or a manifest and :func:`base_facts`, speak of one base model, in whatever dtype."""
    if one.get("base_fingerprint") == other.get("base_fingerprint"):
        return True
    signs = one.get("base_signs")  # None in files of earlier versions
    return signs is not None and signs == other.get("base_signs")


def same_base(first: Model, second: Model) -> bool:
    """Whether the models have equal embeddings but for half precision, as compressions of one base do."""
    tables = [embeddings(model).detach() for model in (first, second)]
    if tables[0].shape != tables[1].shape:
        return False
    a, b = (table[:: max(1, len(table) // 256)].float().cpu() for table in tables)
    return torch.allclose(a, b, rtol=2**-8, atol=1e-7)  # bfloat16 rounds to 2^-9, float16 keeps 6e-8 at least


def copy_fingerprint(model: Model) -> str:
    """Tell a compressed model from other compressions of its base, whatever dtype it is in, packed or not.

    It takes the signs of the last block's weights: where every earlier rounding shows, and no later one does. Tuning
    changes no sign, so a tuned model's configuration says what was learned, and that counts too.
    """
    _, last = blocks(model)[-1]
    packed: list[Any] = [module for module in last.modules() if is_packed(module)]
    dense = [as_matrix(layer) for layer in linears(last).values()]
    matrices = [module.dense(torch.float32) for module in packed] or dense
    signs = tensor_fingerprint(*(matrix.sign().to(torch.int8) for matrix in matrices))
    tuned = getattr(model.config, TUNED, None)
    return signs if tuned is None else text_fingerprint(signs, str(tuned))


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits over the vocabulary with its ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
