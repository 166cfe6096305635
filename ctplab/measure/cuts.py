"""Which rows of a prompt to keep if it is to be shorter, and in which order they go.

    worth       by what each is worth (``worth.py``): the row with the least goes first
    attention   by the attention on it, the mean over layers (``attention_mass.py``)
    first       the first rows stay
    random      drawn with a seed: what a cut costs that knows nothing

The first two are measured on one text, and the cut prompts are to be scored on another: a row that seems useless by
chance would otherwise look well cut.
"""

from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.measure.attention_mass import attention_mass
from ctplab.measure.worth import row_worth
from ctplab.prompts.arms import Arm
from ctplab.text.corpora import Split

WAYS = ("worth", "attention", "first", "random")


def order(way: str, arm: Arm, text: Split | Tensor, *, seed: int = 0, **how: Any) -> list[int]:
    """Return the numbers of the arm's rows, the ones to keep first. ``how``: as in :func:`row_worth`.

    Raises InputError for an unknown way, and if the model does not give away what the way needs.
    """
    if way == "worth":
        found = list(row_worth(arm, text, seed=seed, **how))
        return [each.row for each in sorted(found, key=lambda each: -each.worth.value)]
    if way == "attention":
        return attention_mass(arm, text, **how).mean.argsort(descending=True, stable=True).tolist()
    if way == "first":
        return list(range(arm.prefix.k))
    if way == "random":
        return torch.randperm(arm.prefix.k, generator=torch.Generator().manual_seed(seed)).tolist()
    raise InputError(f"rows are kept by {', '.join(WAYS)}, not by {way!r}")
