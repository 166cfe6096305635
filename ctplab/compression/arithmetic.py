"""How a CPU multiplies while it compresses."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Arithmetic:
    """The number format of products, and what computes them."""

    dtype: torch.dtype
    onednn: bool = False
    """Float32 products by oneDNN instead of torch's BLAS (see ``compression/onednn``)."""
    attention: bool = False
    """Attention by products too, instead of torch's own kernel (see ``compression/attention``). Only in bfloat16."""

    @property
    def name(self) -> str:
        """The format's name, as reports have it."""
        return str(self.dtype).removeprefix("torch.")
