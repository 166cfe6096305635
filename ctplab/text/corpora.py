"""Turn named corpora into token windows (N, T) with a fingerprint.

``atlas-web``, ``atlas-wiki``, ``atlas-news`` (generated), ``docs`` (docstrings on this machine), the published ones
(``published.py``: ``c4``, ``wikitext2``, ``ptb`` and their older variants) and ``file:PATH``.
Documents are joined, tokenised in one piece and cut into windows of T tokens; the tail is dropped. So if the tokenizer
sets a start token, it stands only at the very beginning. Conversations (``chat``) stand one behind the other as the
tokenizer's template writes them, and a mask says which tokens are the assistant's.
"""

import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from ctplab.atlas import docs, registers
from ctplab.disk import LOG, cache_dir, once
from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.text import published
from ctplab.text.chat import Conversation, all_ids, ids_and_answers
from ctplab.text.documents import Document, read_splits
from ctplab.text.tokens import all_tokens

ATLAS_DOCUMENTS = {"train": 8000, "validation": 400, "test": 800}
NAMES = (*registers.WRITERS, "docs", *published.NAMES, "file:PATH")
LOSSES = ("answers", "all")
"""What is counted: the assistant's tokens only, or all."""
MOST_SAMPLES = 1_000_000
"""Calibration windows; the field uses 128."""

Tokens = tuple[Tensor, Tensor | None]
"""(M,) ids, and the mask (M,) bool of those that may be targets; None: all."""


@dataclass(frozen=True)
class Split:
    """One split of a corpus as a token stream."""

    name: str
    split: str
    stream: Tensor
    """(M,) token ids of the whole split."""
    seq_len: int
    mask: Tensor | None = None
    """(M,) bool: the tokens that may be targets, such as the assistant's in conversations; None: all."""

    @cached_property
    def windows(self) -> Tensor:
        """(N, T): disjoint windows in order, without the tail. Raises InputError if the text is too short."""
        n = len(self.stream) // self.seq_len
        if n == 0:
            raise InputError(
                f"{self.name} ({self.split}) has {len(self.stream)} tokens, less than one window of {self.seq_len}; "
                "give more text or a smaller sequence length"
            )
        return self.stream[: n * self.seq_len].view(n, self.seq_len)

    @cached_property
    def window_masks(self) -> Tensor | None:
        """(N, T) bool: the mask of every window; None: all tokens may be targets."""
        return None if self.mask is None else self.mask[: self.windows.numel()].view_as(self.windows)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, T): windows at random positions, for calibration. Raises InputError if ``n`` is absurd."""
        if not 1 <= n <= MOST_SAMPLES:
            raise InputError(f"samples must be from 1 to {MOST_SAMPLES}, not {n}")
        last = len(self.windows.flatten()) - self.seq_len
        rng = random.Random(seed)
        starts = [rng.randint(0, last) for _ in range(n)]
        return torch.stack([self.stream[s : s + self.seq_len] for s in starts])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the token ids, the window length and the mask if there is one."""
        digest = hashlib.sha256(f"{self.seq_len}/".encode())
        digest.update(self.stream.to(torch.int32).numpy().tobytes())
        if self.mask is not None:
            digest.update(self.mask.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """A named corpus, tokenised by one tokenizer. Each split is made on first use."""

    name: str
    seq_len: int
    tokens: Callable[[str], Tokens]
    """What a split, by its name, consists of."""

    def _split(self, split: str) -> Split:
        stream, mask = self.tokens(split)
        return Split(self.name, split, stream, self.seq_len, mask)

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        return self._split("test")


def corpus(name: str, tokenizer: Tokenizer, seq_len: int = 256, *, loss: str | None = None) -> Corpus:
    """The corpus ``name`` in windows of ``seq_len`` tokens.

    ``loss``: which tokens are counted as targets, ``answers`` (the assistant's only; the default for conversations) or
    ``all``. Raises InputError if the name is unknown, and for ``answers`` if the text has none.
    """
    if seq_len < 2:
        raise InputError(f"sequence length must be at least 2, not {seq_len}")
    if loss not in (None, *LOSSES):
        raise InputError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    if name.startswith("file:"):
        splits = read_splits(name.removeprefix("file:"))
        return Corpus(name, seq_len, lambda split: _from_file(name, split, splits[split], tokenizer, loss))
    if loss == "answers":
        raise InputError(f"{name} has no answers: they come with files of conversations; use loss='all'")
    if name in registers.WRITERS:
        text = partial(_atlas_text, name)
    elif name == "docs":
        text = _docs_text
    elif name in published.NAMES:
        return Corpus(name, seq_len, lambda split: (published.token_stream(name, split, tokenizer, seq_len), None))
    else:
        raise InputError(f"unknown corpus {name!r}; known are {', '.join(NAMES)}")
    return Corpus(name, seq_len, lambda split: (_tokenised(name, split, text(split), tokenizer), None))


def _from_file(name: str, split: str, documents: list[Document], tokenizer: Tokenizer, loss: str | None) -> Tokens:
    conversations = [document for document in documents if isinstance(document, Conversation)]
    if conversations:
        return _spoken(name, split, conversations, tokenizer, loss or "answers")
    if loss == "answers":
        raise InputError(f"{name} has no answers: it is no file of conversations; use loss='all'")
    text = "\n\n".join(document for document in documents if isinstance(document, str))
    return _tokenised(name, split, text, tokenizer), None


def _spoken(name: str, split: str, conversations: list[Conversation], tokenizer: Tokenizer, loss: str) -> Tokens:
    """Conversations one behind the other. Raises InputError if answers are asked for and there is none."""
    if loss == "all":
        return torch.tensor([i for c in conversations for i in all_ids(tokenizer, c)], dtype=torch.long), None
    parts = [ids_and_answers(tokenizer, conversation) for conversation in conversations]
    mask = torch.tensor([mark for _, marks in parts for mark in marks], dtype=torch.bool)
    if not mask.any():
        raise InputError(f"{name} has no answers in its {split} split: no turn is the assistant's; use loss='all'")
    return torch.tensor([i for ids, _ in parts for i in ids], dtype=torch.long), mask


def _tokenised(name: str, split: str, text: str, tokenizer: Tokenizer) -> Tensor:
    if not text.strip():
        raise InputError(f"{name} has no text in its {split} split")
    return torch.tensor(all_tokens(tokenizer, text, f"{name} ({split})"), dtype=torch.long)


def _atlas_text(name: str, split: str) -> str:
    return "\n\n".join(registers.document(name, split, i) for i in range(ATLAS_DOCUMENTS[split]))


def _docs_text(split: str) -> str:
    return "\n\n".join(_docs()[split])


def _docs() -> dict[str, list[str]]:
    """The harvest, cached on disk for the installed versions that it was made from."""
    installed = {d.name: d.version for d in metadata.distributions() if d.name in docs.PACKAGES}
    rules = Path(docs.__file__).read_bytes()
    key = hashlib.sha256(json.dumps([sys.version, sorted(installed.items())]).encode() + rules).hexdigest()[:16]
    try:
        return once(cache_dir() / f"docs-{key}.json", {"made of": key}, docs.harvest)
    except InputError as error:
        LOG.warning("%s; the corpus 'docs' is harvested each time", error)
        return docs.harvest()
