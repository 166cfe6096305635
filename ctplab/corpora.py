"""Named corpora -> token windows (N, T) with a fingerprint.

``atlas-web``, ``atlas-wiki``, ``atlas-news`` (generated), ``docs`` (docstrings on this machine), ``c4``,
``wikitext2``, ``ptb`` (from the folder ``CTPLAB_DATA``, else through ``datasets``) and ``file:PATH``.
Documents are joined, tokenised once and cut into windows of T; the tail is dropped.
"""

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from ctplab.atlas import docs, registers
from ctplab.errors import InputError
from ctplab.models import Tokenizer

ATLAS_DOCUMENTS = {"train": 8000, "validation": 400, "test": 800}
NAMES = (*registers.WRITERS, "docs", "c4", "wikitext2", "ptb", "file:PATH")


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
        """(N, T): disjoint windows in order, tail dropped. Raises InputError where the text is too short."""
        n = len(self.stream) // self.seq_len
        if n == 0:
            raise InputError(
                f"{self.name} ({self.split}) has {len(self.stream)} tokens, less than one window of {self.seq_len}; "
                "give more text or a smaller sequence length"
            )
        return self.stream[: n * self.seq_len].view(n, self.seq_len)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, T): windows at random places, as calibration draws them."""
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
    """A named corpus tokenised by one tokenizer; splits are made when first used."""

    name: str
    tokenizer: Tokenizer
    seq_len: int
    text: Callable[[str], str]

    def _split(self, split: str) -> Split:
        text = self.text(split)
        if not text.strip():
            raise InputError(f"{self.name} has no text in its {split} split")
        ids = self.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
        return Split(self.name, split, torch.tensor(ids, dtype=torch.long), self.seq_len)

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
    """The corpus ``name`` in windows of ``seq_len`` tokens. Raises InputError for an unknown name."""
    if seq_len < 2:
        raise InputError(f"sequence length must be at least 2, not {seq_len}")
    if name in registers.WRITERS:
        return Corpus(name, tokenizer, seq_len, lambda split: _atlas_text(name, split))
    if name == "docs":
        return Corpus(name, tokenizer, seq_len, lambda split: "\n\n".join(_docs()[split]))
    if name.startswith("file:"):
        splits = _read_files(name.removeprefix("file:"))
        return Corpus(name, tokenizer, seq_len, lambda split: "\n\n".join(splits[split]))
    if name in ("c4", "wikitext2", "ptb"):
        return Corpus(name, tokenizer, seq_len, lambda split: _published(name, split))
    raise InputError(f"unknown corpus {name!r}; known are {', '.join(NAMES)}")


def _atlas_text(name: str, split: str) -> str:
    return "\n\n".join(registers.document(name, split, i) for i in range(ATLAS_DOCUMENTS[split]))


def cache_dir() -> Path:
    """``CTPLAB_CACHE``, or ``~/.cache/ctplab``."""
    return Path(os.environ.get("CTPLAB_CACHE") or Path.home() / ".cache" / "ctplab")


def _docs() -> dict[str, list[str]]:
    """The harvest, kept on disk for the installed versions it was made from."""
    installed = {d.name: d.version for d in metadata.distributions() if d.name in docs.PACKAGES}
    rules = Path(docs.__file__).read_bytes()
    key = hashlib.sha256(json.dumps([sys.version, sorted(installed.items())]).encode() + rules).hexdigest()[:16]
    path = cache_dir() / f"docs-{key}.json"
    if path.exists():
        return json.loads(path.read_text())
    splits = docs.harvest()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    temporary.write_text(json.dumps(splits))
    os.replace(temporary, path)
    return splits


def _read_documents(path: Path) -> list[str]:
    """Documents of one file: a ``text`` field a line (.jsonl), or paragraphs between blank lines (other)."""
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: every line must be a JSON object with a 'text' field") from None
    mark = "<|endoftext|>" if "<|endoftext|>" in content else "\n\n"
    return [part.strip("\n") for part in content.split(mark) if part.strip()]


def _read_files(paths: str) -> dict[str, list[str]]:
    """``TRAIN,VALIDATION,TEST``, or one file split 90/5/5 by document (between words where it has fewer than 20)."""
    files = [Path(part) for part in paths.split(",")]
    if len(files) == 3:
        return dict(zip(registers.SPLITS, map(_read_documents, files), strict=True))
    if len(files) != 1:
        raise InputError("file: takes one path, or three: file:TRAIN,VALIDATION,TEST")
    documents = _read_documents(files[0])
    if not documents:
        raise InputError(f"{files[0]} has no text")
    if len(documents) < 20:  # too few to share out: cut the text itself, between words
        words = "\n\n".join(documents).split(" ")
        a, b = (round(share * len(words)) for share in (0.9, 0.95))
        return {"train": [" ".join(words[:a])], "validation": [" ".join(words[a:b])], "test": [" ".join(words[b:])]}
    a, b = (round(share * len(documents)) for share in (0.9, 0.95))
    return {"train": documents[:a], "validation": documents[a:b], "test": documents[b:]}


def _published(name: str, split: str) -> str:
    """C4, WikiText-2 and PTB with the joins of the reference evaluators (``new-eval``)."""
    root = os.environ.get("CTPLAB_DATA")
    if not root:
        return _from_hub(name, split)
    folder = Path(root)
    if name == "c4":
        texts = _read_documents(folder / "c4" / "c4_sample.jsonl")
        return " ".join(texts[:900] if split == "train" else texts[900:])
    if name == "wikitext2":
        file = {"train": "wiki.train.tokens", "validation": "wiki.valid.raw", "test": "wiki.test.raw"}[split]
        return "\n\n".join(_lines(folder / "wikitext-2" / file))
    file = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}[split]
    return " ".join(line.strip() for line in _lines(folder / "ptb" / file))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _from_hub(name: str, split: str) -> str:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise InputError(f"{name} needs the folder CTPLAB_DATA, or 'pip install datasets' and a hub") from None
    try:
        if name == "c4":
            part = "train.00000-of-01024" if split == "train" else "validation.00000-of-00008"
            rows = load_dataset("allenai/c4", data_files={"x": f"en/c4-{part}.json.gz"}, split="x")
            return " ".join(rows[: 5000 if split == "train" else 1100]["text"])
        if name == "wikitext2":
            return "\n\n".join(load_dataset("wikitext", "wikitext-2-raw-v1", split=split)["text"])
        return " ".join(load_dataset("ptb_text_only", "penn_treebank", split=split)["sentence"])
    except Exception as error:
        raise InputError(f"cannot get {name} from the hub ({type(error).__name__}); set CTPLAB_DATA") from error
