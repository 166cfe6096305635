"""Tell models, tokenizers and tensors apart by 16 hex digits."""

import hashlib
import json

from torch import Tensor

from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings


def tensor_fingerprint(*tensors: Tensor) -> str:
    """16 hex digits over shapes and values (for 512 rows or more, over at least 256 evenly spaced rows)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps(list(tensor.shape)).encode())
        if tensor.numel() == 0:
            continue
        rows = tensor.detach().reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)
        step = max(1, rows.shape[0] // 256)
        digest.update(rows[::step].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def base_fingerprint(model: Model) -> str:
    """Identify the uncompressed base model by its embeddings, which compression never touches."""
    return tensor_fingerprint(embeddings(model))


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits over the vocabulary with its ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
