"""What stands behind an arm's prefix: texts as ids, their padding, masks and positions, and whether all of it fits.

Every way to decode starts here, so a text reads the same in each of them. ``text/reading.py`` says which ids it is.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_ids, check_text, embeddings
from ctplab.prompts.arms import Arm
from ctplab.text import chat
from ctplab.text.reading import encode


@dataclass(frozen=True)
class Batch:
    """Texts of several lengths side by side: they end together, and padding fills their left."""

    ids: Tensor  # (B, n)
    mask: Tensor  # (B, n): 1 for a text's own tokens, 0 for padding


def left_padded(rows: Sequence[list[int]], model: Model, padding: int) -> Batch:
    """Rows of ids as one batch on the model's device. ``padding`` may be any id.

    Raises InputError if the model lacks one of the rows' own ids.
    """
    padding = padding if padding < embeddings(model).shape[0] else 0
    length = max(map(len, rows))
    ids = [[padding] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    device = embeddings(model).device
    check_ids(model, torch.tensor(ids))
    return Batch(torch.tensor(ids, device=device), torch.tensor(mask, device=device))


def prepare(
    arm: Arm, tokenizer: Tokenizer, texts: Sequence[str], new_tokens: int, *, raw: bool = False, start: str = "auto"
) -> Batch:
    """``texts`` behind ``arm``, ready for answers of ``new_tokens`` tokens. ``raw``, ``start``: as for ``encode``.

    Raises InputError for empty texts, for fewer than one new token, and if prefix, text and answer do not fit.
    """
    if new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {new_tokens}")
    if not texts:
        raise InputError("the list of texts is empty; give at least one")
    rows = [encode(tokenizer, text, raw=raw, start=start) for text in texts]
    check_text(arm.model, arm.prefix.k, max(map(len, rows)), new_tokens)
    return left_padded(rows, arm.model, padding_token(tokenizer))


def check_all(
    arms: Sequence[Arm], tokenizer: Tokenizer, texts: Sequence[str], new_tokens: int, *, raw: bool, start: str
) -> None:
    """Raise InputError if an arm has no room for one of the ``texts`` and its answer: before the first arm answers.

    What it proposes works for all arms.
    """
    length = max((len(encode(tokenizer, text, raw=raw, start=start)) for text in texts), default=0)
    for arm in arms:
        check_text(arm.model, max(each.prefix.k for each in arms), length, new_tokens)


def padding_token(tokenizer: Tokenizer) -> int:
    """The id to pad with: the padding token, else the end token, else 0. No model sees it, because its mask is 0."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def end_tokens(model: Model) -> list[int]:
    """The ids after which the model has nothing more to say; there may be none."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def answer_ends(model: Model, tokenizer: Tokenizer, raw: bool = False) -> list[int]:
    """The ids that end an answer: :func:`end_tokens`, and the end of a turn if a chat template is used."""
    ends, turn = end_tokens(model), None if raw else chat.end_of_turn(tokenizer)
    return ends if turn is None or turn in ends else [*ends, turn]


def before_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    """``tokens`` up to the first of ``ends``, which is no part of an answer."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def behind_prefix(mask: Tensor, k: int) -> Tensor:
    """The mask of prefix and texts: (B, n) -> (B, k + n)."""
    return torch.cat([mask.new_ones(len(mask), k), mask], 1)


def positions(mask: Tensor) -> Tensor:
    """Each token's place, padding not counted: ``mask`` (B, m) of prefix, texts and answers -> (B, m)."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def crowded_window(arm: Arm, mask: Tensor, new_tokens: int) -> int | None:
    """The model's attention window, if padding between prefix and text would take up places in it; else None.

    A sliding window counts places in the cache, padding included, so the prefix would slide out of sight too early.
    ``mask``: (B, k + n) of prefix and texts.
    """
    from transformers import DynamicCache

    if arm.prefix.k == 0 or mask.all():
        return None
    layers: list[Any] = DynamicCache(config=arm.model.config).layers
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    return min((window for window in windows if window < mask.shape[1] + new_tokens), default=None)
