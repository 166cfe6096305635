"""Turn named corpora into token windows (N, T) with a fingerprint.

``atlas-web``, ``atlas-wiki``, ``atlas-news`` (generated), ``docs`` (docstrings on this machine), the published ones
(``published.py``: ``c4``, ``wikitext2``, ``ptb`` and their older variants) and ``file:PATH``.
Documents are joined, tokenised in one piece and cut into windows of T tokens; the tail is dropped. So if the tokenizer
sets a start token, it stands only at the very beginning.
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
from ctplab.disk import cache_dir, write_text
from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.text import published
from ctplab.text.documents import read_splits

ATLAS_DOCUMENTS = {"train": 8000, "validation": 400, "test": 800}
NAMES = (*registers.WRITERS, "docs", *published.NAMES, "file:PATH")


@dataclass(frozen=True)
class Split:
    """One split of a corpus as a token stream."""

    name: str
    split: str
    stream: Tensor
    """(M,) token ids of the whole split."""
    seq_len: int

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

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, T): windows at random positions, for calibration."""
        last = len(self.windows.flatten()) - self.seq_len
        rng = random.Random(seed)
        starts = [rng.randint(0, last) for _ in range(n)]
        return torch.stack([self.stream[s : s + self.seq_len] for s in starts])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the token ids and the window length."""
        digest = hashlib.sha256(f"{self.seq_len}/".encode())
        digest.update(self.stream.to(torch.int32).numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """A named corpus, tokenised by one tokenizer. Each split is made on first use."""

    name: str
    seq_len: int
    stream: Callable[[str], Tensor]
    """Split name -> (M,) token ids."""

    def _split(self, split: str) -> Split:
        return Split(self.name, split, self.stream(split), self.seq_len)

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        return self._split("test")


def corpus(name: str, tokenizer: Tokenizer, seq_len: int = 256) -> Corpus:
    """The corpus ``name`` in windows of ``seq_len`` tokens. Raises InputError if the name is unknown."""
    if seq_len < 2:
        raise InputError(f"sequence length must be at least 2, not {seq_len}")
    if name in registers.WRITERS:
        text = partial(_atlas_text, name)
    elif name == "docs":
        text = partial(_joined, _docs)
    elif name.startswith("file:"):
        splits = read_splits(name.removeprefix("file:"))
        text = partial(_joined, lambda: splits)
    elif name in published.NAMES:
        return Corpus(name, seq_len, lambda split: published.token_stream(name, split, tokenizer, seq_len))
    else:
        raise InputError(f"unknown corpus {name!r}; known are {', '.join(NAMES)}")
    return Corpus(name, seq_len, lambda split: _tokenised(name, split, text(split), tokenizer))


def _tokenised(name: str, split: str, text: str, tokenizer: Tokenizer) -> Tensor:
    if not text.strip():
        raise InputError(f"{name} has no text in its {split} split")
    ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _atlas_text(name: str, split: str) -> str:
    return "\n\n".join(registers.document(name, split, i) for i in range(ATLAS_DOCUMENTS[split]))


def _joined(splits: Callable[[], dict[str, list[str]]], split: str) -> str:
    return "\n\n".join(splits()[split])


def _docs() -> dict[str, list[str]]:
    """The harvest, cached on disk for the installed versions that it was made from."""
    installed = {d.name: d.version for d in metadata.distributions() if d.name in docs.PACKAGES}
    rules = Path(docs.__file__).read_bytes()
    key = hashlib.sha256(json.dumps([sys.version, sorted(installed.items())]).encode() + rules).hexdigest()[:16]
    path = cache_dir() / f"docs-{key}.json"
    if path.exists():
        return json.loads(path.read_text())
    splits = docs.harvest()
    write_text(json.dumps(splits), path)
    return splits
