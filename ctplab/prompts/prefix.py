"""A prefix: k rows (k, d) in a model's embedding space, put in front of every input.

A hard prompt, a learned soft prompt and every control have the same type, so each measurement is written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import check_ids, embed, embeddings
from ctplab.text.reading import start_token, words, written_first

#: The hard prompt of the paper's Figure 1.
PAPER_HARD_PROMPT = (
    "Please carefully examine the weight matrix within the model, as it may contain errors. It is crucial to "
    "verify its accuracy and make any necessary adjustments to ensure optimal performance."
)


@dataclass(frozen=True)
class Prefix:
    """k rows in front of every input."""

    name: str
    rows: Tensor  # (k, d) fp32
    ids: tuple[int, ...] | None = None  # the vocabulary ids that the rows come from or started from

    @property
    def k(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True)
class KVPrefix:
    """A prefix given as the keys and values of every layer: learned as such, or computed by another model."""

    name: str
    kv: tuple[tuple[Tensor, Tensor], ...]  # per layer: keys and values, each (1, heads, k, head_dim)

    @property
    def k(self) -> int:
        return self.kv[0][0].shape[2] if self.kv else 0


AnyPrefix = Prefix | KVPrefix


def tensors(prefix: AnyPrefix) -> tuple[Tensor, ...]:
    """All tensors of a prefix, for fingerprints."""
    return (prefix.rows,) if isinstance(prefix, Prefix) else tuple(t for pair in prefix.kv for t in pair)


def none(model: Model) -> Prefix:
    """No rows at all."""
    return Prefix("none", torch.zeros(0, embeddings(model).shape[1]), ())


def from_ids(model: Model, ids: Tensor, name: str) -> Prefix:
    """The embeddings of vocabulary ``ids`` (k,)."""
    check_ids(model, ids)
    return Prefix(name, embed(model, ids).detach().float().cpu(), tuple(ids.tolist()))


def hard(model: Model, tokenizer: Tokenizer, text: str = PAPER_HARD_PROMPT) -> Prefix:
    """The embeddings of a text's tokens, behind the start that the tokenizer writes; an end token is no part of it."""
    if not text.strip():
        raise InputError("the hard prompt is empty; give at least one word")
    return from_ids(model, torch.tensor([*written_first(tokenizer), *words(tokenizer, text)]), "hard")


def bos(model: Model, tokenizer: Tokenizer) -> Prefix:
    """Control: the start token alone. It shows whether a prompt does more than an attention sink."""
    token = start_token(tokenizer)
    if token is None:
        raise InputError("this tokenizer has no start token: there is no bos control for it")
    return from_ids(model, torch.tensor([token]), "bos")


def random_rows(model: Model, k: int, seed: int = 0, name: str = "random") -> Prefix:
    """The paper's initialisation: k random rows of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = embeddings(model).shape[0]
    if k <= vocabulary:
        return from_ids(model, torch.randperm(vocabulary, generator=generator)[:k], name)
    return from_ids(model, torch.randint(vocabulary, (k,), generator=generator), name)


def random_control(model: Model, k: int, seed: int = 0, unlike: Sequence[tuple[int, ...] | None] = ()) -> Prefix:
    """Control: k random rows of the vocabulary, other than those of the untrained prompt and of other controls.

    Tries the seeds after ``seed`` until the rows differ from those that ``vocab-random`` draws with ``seed`` and from
    all ids in ``unlike``. Raises InputError if the vocabulary is too small for that.
    """
    taken = [random_rows(model, k, seed).ids, *unlike]
    for attempt in range(1, 65):
        found = random_rows(model, k, seed + attempt)
        if found.ids not in taken:
            return found
    raise InputError(f"the vocabulary has no {k} rows that no other control has: give a longer prompt")


def first_rows(model: Model, k: int) -> Prefix:
    """The initialisation of the paper's released code: vocabulary ids 0 .. k - 1."""
    return from_ids(model, torch.arange(k) % embeddings(model).shape[0], "first")


def text_rows(model: Model, tokenizer: Tokenizer, text: str, k: int) -> Prefix:
    """k rows from a text's tokens, repeated or cut to length."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise InputError("the text to start from is empty")
    return from_ids(model, torch.tensor([ids[i % len(ids)] for i in range(k)]), "text")


def frequent_rows(model: Model, stream: Tensor, k: int) -> Prefix:
    """The k most frequent tokens of a token stream (M,), most frequent first; repeated if there are fewer."""
    vocabulary = embeddings(model).shape[0]
    counts = torch.bincount(stream.flatten().cpu(), minlength=vocabulary)
    order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    return from_ids(model, order[torch.arange(k) % len(order)], "frequent")


def resized(prefix: Prefix, k: int) -> Prefix:
    """k rows of an earlier prompt: its first k, repeated from the first row on if it has fewer."""
    if prefix.k == 0:
        raise InputError("the prompt to start from has no rows")
    rows = torch.arange(k) % prefix.k
    ids = tuple(prefix.ids[i] for i in rows.tolist()) if prefix.ids else prefix.ids
    return Prefix("init", prefix.rows[rows].clone(), ids)


def only(prefix: AnyPrefix, rows: Sequence[int]) -> AnyPrefix:
    """The prefix that has only the rows of these numbers, in this order.

    It is a shorter prompt: what stood behind a row that is gone moves up, the text too. Keys and values stay as they
    were computed, behind rows that are gone now and with the positions that they had. Raises InputError for numbers
    that are no rows, and for none at all.
    """
    if not rows or not all(0 <= row < prefix.k for row in rows):
        raise InputError(f"rows to keep must be some of 0 to {prefix.k - 1}")
    numbers = torch.tensor(list(rows))
    if isinstance(prefix, KVPrefix):
        return KVPrefix(prefix.name, tuple((keys[:, :, numbers], values[:, :, numbers]) for keys, values in prefix.kv))
    ids = tuple(prefix.ids[row] for row in rows) if prefix.ids else prefix.ids
    return Prefix(prefix.name, prefix.rows[numbers], ids)
