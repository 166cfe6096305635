"""The Hessian of a linear layer: second moments of its inputs, summed batch by batch. Pure tensors."""

import torch
from torch import Tensor

from ctplab.compression import onednn
from ctplab.compression.arithmetic import Arithmetic

CHUNK = 2048  # tokens per bfloat16 product
FEW = 512  # the first tokens of a batch, which give an estimate of its first product; shorter parts are joined
PANEL = {"cpu": 256, "cuda": 2048}
"""Rows of H per product: each product starts at the diagonal, so that little more than the upper triangle is computed.
A card needs large products."""


class Hessian:
    """H = 2 X Xᵀ / N of one input: the fp32 products of each batch, summed in fp64.

    An fp64 sum of fp32 numbers is exact except for rare last bits. So it depends neither on the order of the batches
    nor on which process added which batch.
    """

    def __init__(self, columns: int, device: torch.device, arithmetic: Arithmetic | None = None) -> None:
        """``arithmetic``: how a CPU multiplies; None: in float32. A card decides by dtype."""
        self.arithmetic = arithmetic or Arithmetic(torch.float32)
        self.total = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, *parts: Tensor) -> None:
        """Add one batch, given as the parts (..., columns) in which it was computed."""
        xs = [x.detach().reshape(-1, x.shape[-1]) for x in parts if x.numel()]
        if not xs:
            return
        if len(xs[0]) < FEW:
            xs = [torch.cat(xs)]
        x = xs[0]
        native = self.arithmetic.dtype == torch.bfloat16 and x.device.type == "cpu"
        half = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
        xs = xs if half else [x.bfloat16() if native else x.float() for x in xs]
        product = _bfloat16_product if native else _half_product if half else _product
        if self.arithmetic.onednn and x.device.type == "cpu":
            product, xs = _onednn_product, [x.T.contiguous().T for x in xs]  # columns in one piece are faster by a half
        panel = PANEL.get(x.device.type, PANEL["cpu"])
        for start in range(0, x.shape[1], panel):
            left, right = [x[:, start : start + panel] for x in xs], [x[:, start:] for x in xs]
            self.total[start : start + panel, start:] += product(left, right)
        self.tokens += sum(len(x) for x in xs)

    @property
    def matrix(self) -> Tensor:
        """H (columns, columns), symmetric, fp32."""
        upper = self.total.float().triu()
        return (upper + upper.triu(1).T) * (2 / max(1, self.tokens))


def _product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """The sum of leftᵀ right over the parts."""
    total = lefts[0].T @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left.T, right)
    return total


def _onednn_product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """The same sum by oneDNN."""
    total = onednn.linear(lefts[0].T, rights[0].T)
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total += onednn.linear(left.T, right.T)
    return total


def _half_product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """The same sum of half-precision inputs in fp32, computed with a card's tensor cores: ten times as fast as in fp32.

    The product of two bfloat16 or two fp16 numbers has at most 22 bits, so fp32 holds it exactly. Only the sums are
    rounded, as in fp32 products of the same numbers.
    """
    total = torch.mm(lefts[0].T, rights[0], out_dtype=torch.float32)
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total += torch.mm(left.T, right, out_dtype=torch.float32)
    return total


def _bfloat16_product(lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """The same sum in fp32, computed with a CPU's own bfloat16 instructions, if they are faster than fp32 products.

    These instructions round each product to bfloat16. So each chunk of tokens computes only the difference from an
    estimate. The earlier chunks give the estimate; for the first chunk, its own first tokens do. The differences are
    small, and what all tokens have in common is not rounded at all. H is then off by 0.1 to 0.5 percent of its mean
    diagonal (spectral norm; 768 to 4,096 columns): at most half of the usual dampening.
    """
    lefts, rights = ([chunk for part in parts for chunk in part.split(CHUNK)] for parts in (lefts, rights))
    few = FEW if len(lefts) > 2 else CHUNK
    before, seen = lefts[0][:few].T @ rights[0][:few], len(lefts[0][:few])
    total = torch.zeros(before.shape)
    tokens = 0
    for left, right in zip(lefts, rights, strict=True):
        expected = (before * (len(left) / seen)).bfloat16()
        total += torch.addmm(expected, left.T, right, beta=-1)
        total += expected
        tokens += len(left)
        before, seen = total, tokens
    return total
