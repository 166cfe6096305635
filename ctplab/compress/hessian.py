"""Second moments of a linear's inputs, added up batch by batch. Pure tensors."""

import torch
from torch import Tensor

CHUNK = 2048  # tokens of one bfloat16 product
FEW = 512  # tokens that give the common part of a batch's products
PANEL = 256  # columns of H that one product fills: only the upper triangle is computed


class Hessian:
    """H = 2 X Xᵀ / N of one input: products of each batch, added up in fp64.

    So wide a sum of fp32 numbers is exact but for rare last bits: it does not depend on the batches' order, nor on
    which of several processes added which.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.total = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, *parts: Tensor) -> None:
        """Take in one batch: x (..., columns), in as many parts as it was made in."""
        xs = [x.detach().reshape(-1, x.shape[-1]) for x in parts]
        if len(xs[0]) < FEW:
            xs = [torch.cat(xs)]
        x = xs[0]
        native = x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        xs = xs if native else [x.float() for x in xs]
        product = _bfloat16_product if native else _product
        for start in range(0, x.shape[1], PANEL):
            left, right = [x[:, start : start + PANEL] for x in xs], [x[:, start:] for x in xs]
            self.total[start : start + PANEL, start:] += product(left, right)
        self.tokens += sum(len(x) for x in xs)

    @property
    def matrix(self) -> Tensor:
        """(columns, columns), symmetric, fp32."""
        upper = self.total.float().triu()
        return (upper + upper.triu(1).T) * (2 / max(1, self.tokens))


def _product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """Sum of leftᵀ right over the parts."""
    total = lefts[0].T @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left.T, right)
    return total


def _bfloat16_product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """The same in fp32, of bfloat16 inputs with a CPU's own bfloat16 instructions: twice as fast as in fp32.

    Each chunk of tokens gives the difference to what the first few tokens let expect, so that what is rounded to
    bfloat16 is the small change from chunk to chunk, not the large common part. H is then off by one or two
    thousandths of its mean diagonal (spectral norm), a fifth of the usual dampening at most.
    """
    few = min(FEW, len(lefts[0]))
    known = lefts[0][:few].T @ rights[0][:few]
    total = torch.zeros(known.shape)
    for left, right in zip(lefts, rights, strict=True):
        for a, b in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
            total += torch.addmm(known, a.T, b, beta=-len(a) / few)
    return total.add_(known, alpha=sum(len(left) for left in lefts) / few)
