"""How much of its attention a text gives to each row of a prompt, layer by layer.

    mass of row i in a layer = mean over heads and targets of softmax(q Kᵀ · scale)_i,       K: prompt and text

The query at t counts if the token at t + 1 is a target. Attention tells where a model looks, not what that is good for:
a row with much of it can be worth nothing (``worth.py`` measures that).

No model has to give its attention away for this, and no matrix of the length squared is kept: the pass is watched
(``prompts/attention``), and each layer's queries are taken some at a time. What comes out is checked against what the
layer itself made of the same queries and keys.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.perplexity import masks_of, windows_key, windows_of
from ctplab.models import Model
from ctplab.models.anatomy import check_context, check_ids, embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import Concatenated, compiled
from ctplab.prompts.head import watched
from ctplab.prompts.ways import ways
from ctplab.text.corpora import Split

CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest relative difference that rounding explains, in one layer."""
SCORES = 2**24
"""Attention scores in fp32 at a time: 64 MB."""


@dataclass(frozen=True)
class AttentionMass:
    """Where a text looks."""

    rows: Tensor
    """(layers, k) fp64: the mean share of attention that each row gets."""
    even: float
    """The share that a row would get if every query looked at all that it can see alike."""

    @property
    def mean(self) -> Tensor:
        """(k,): the mean over layers."""
        return self.rows.mean(0)

    @property
    def prompt(self) -> Tensor:
        """(layers,): the share of all rows together; the rest goes to the text."""
        return self.rows.sum(1)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"rows": self.rows.tolist(), "even": self.even}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse."""
        return cls(torch.tensor(data["rows"], dtype=torch.float64), data["even"])


def attention_mass(
    arm: Arm,
    text: Split | Tensor,
    *,
    batch: int = 16,
    limit: int | None = None,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> AttentionMass:
    """Measure the attention on every row of the arm's prefix, on the first ``limit`` windows.

    ``keep`` stores the result. Raises InputError if the prefix has no rows, if the model's attention is not one that
    the lab can watch, and if it is more than a softmax over queries and keys.
    """
    windows, masks = windows_of(text, limit), masks_of(text, limit)
    key = {"arm": arm.fingerprint, **windows_key(windows, masks)}

    def compute() -> dict[str, Any]:
        return _measure(arm, windows, masks, batch, progress).to_json()

    return AttentionMass.from_json(keep("attention", key, compute))


@torch.no_grad()
def _measure(arm: Arm, windows: Tensor, masks: Tensor | None, batch: int, progress: Progress) -> AttentionMass:
    model, k = arm.model, arm.prefix.k
    if k == 0:
        raise InputError("this arm has no prompt rows that a text could look at")
    check_context(model, k, windows.shape[1])
    check_ids(model, windows)
    found, kv = ways(model), compiled(arm)
    if isinstance(kv, Concatenated) or not found.maskless:
        raise _unseen(model)
    device = embeddings(model).device
    counts = torch.ones_like(windows[:, 1:]).bool() if masks is None else masks[:, 1:].cpu()
    counts = torch.cat([counts, torch.zeros_like(counts[:, :1])], 1)  # the last query predicts nothing
    if not counts.any():
        raise InputError("there is nothing to score: no targets")
    sums = torch.zeros(len(kv), k, dtype=torch.float64)
    parts = torch.arange(len(windows)).split(batch)
    for numbers in progress(parts, total=len(parts), label="attention"):
        watch = _Layers(k, counts[numbers].to(device))
        try:
            watched(model, kv, windows[numbers].to(device), watch)
        except (TypeError, ValueError) as error:  # InputError is a ValueError too
            raise error if isinstance(error, InputError) else _unseen(model) from None
        if len(watch.sums) != len(kv):
            raise _unseen(model)
        sums += torch.stack([each.cpu() for each in watch.sums])  # a model may lie on several cards
    places = torch.arange(windows.shape[1], dtype=torch.float64)
    even = (counts.sum(0) / (k + places + 1)).sum() / counts.sum()
    return AttentionMass(sums / counts.sum(), float(even))


def _unseen(model: Model) -> InputError:
    return InputError(
        f"where {type(model).__name__} looks cannot be watched: its attention is not transformers' own 'sdpa', or its "
        "prompt is read with every text again"
    )


class _Layers:
    """Sums every layer's attention on the rows, over the queries that count."""

    def __init__(self, k: int, counts: Tensor) -> None:
        self.k = k
        self.counts = counts  # (B, n) bool
        self.sums: list[Tensor] = []

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, out: Tensor
    ) -> None:
        batch, heads, n, width = query.shape
        groups, seen = key.shape[1], key.shape[2]
        scale = width**-0.5 if scaling is None else scaling
        query = query.unflatten(1, (groups, heads // groups))  # (B, groups, heads a group, n, width)
        keys, values = (x[:, :, None].float() for x in (key, value))
        total = torch.zeros(self.k, dtype=torch.float64, device=query.device)
        counts = self.counts.to(query.device)
        step = max(1, SCORES // (batch * heads * seen))
        for first in range(0, n, step):
            some = slice(first, min(n, first + step))
            scores = query[:, :, :, some].float() @ keys.transpose(-1, -2) * scale  # (B, groups, heads, some, seen)
            weights = (scores + _hidden(mask, some, n, seen, scores.device)).softmax(-1)
            shares = weights[..., : self.k].mean((1, 2), dtype=torch.float64)  # (B, some, k)
            total += shares[counts[:, some]].sum(0)
            if first == 0:
                self._check((weights @ values).flatten(1, 2).transpose(1, 2), out[:, some])
        self.sums.append(total)

    @staticmethod
    def _check(ours: Tensor, theirs: Tensor) -> None:
        """Raise InputError unless the layer made of these queries and keys what our weights make."""
        close = CLOSE.get(theirs.dtype, CLOSE[torch.float32]) * theirs.float().norm()
        if not (ours - theirs.float()).norm() <= close:
            raise InputError("this model's attention is more than a softmax over queries and keys: it gives no shares")


def _hidden(mask: Tensor | None, some: slice, n: int, seen: int, device: torch.device) -> Tensor:
    """What is added to the scores of the queries ``some`` (B or 1, 1, 1, some, seen): -inf hides a key."""
    if mask is None:  # causal behind what is cached
        places = torch.arange(some.start, some.stop, device=device)[:, None] + seen - n
        allowed = torch.arange(seen, device=device) <= places
        return torch.zeros(1, 1, 1, *allowed.shape, device=device).masked_fill(~allowed, float("-inf"))
    rows = mask[:, :1, some, :seen].unsqueeze(1)
    if rows.dtype == torch.bool:
        return torch.zeros(rows.shape, device=device).masked_fill(~rows, float("-inf"))
    return rows.float()
