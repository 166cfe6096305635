"""C4, WikiText-2 and PTB as the reference evaluators read them (their ``--new-eval`` forms, which the paper used).

| name | train | validation: chooses checkpoints | test: is reported |
|---|---|---|---|
| ``c4`` | first 5,000 documents of the first training shard | the 500 after them | first 1,100 validation documents |
| ``c4-256`` | as c4 | as c4 | as c4, cut to 256 windows |
| ``c4-old`` | | | 256 windows from long validation documents, each with its own start token, seed 0 |
| ``wikitext2`` | train | validation | test, rows joined by blank lines |
| ``ptb`` | train | validation | test, sentences joined by spaces |
| ``ptb-old`` | | | validation, sentences joined by blank lines |

C4 documents are joined by spaces. The paper's code chose checkpoints on the C4 split that it reports; here the two
splits differ. Texts come from the folder ``CTPLAB_DATA`` if it is set (its C4 is a sample of 1,000 records, split
850 / 50 / 100), else from the hub through ``datasets``.
"""

import io
import os
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Tokenizer, hub
from ctplab.text.documents import read_texts
from ctplab.text.tokens import all_tokens
from ctplab.text_files import read_text

NAMES = ("c4", "c4-256", "c4-old", "wikitext2", "ptb", "ptb-old")
OLD = {"c4-old": "c4", "ptb-old": "ptb"}
WINDOWS = 256


def token_stream(name: str, split: str, tokenizer: Tokenizer, seq_len: int) -> Tensor:
    """(M,) token ids of a split. Raises InputError if the text is not available or the variant has no such split."""
    if name in OLD and split != "test":
        raise InputError(f"{name} is an old way of scoring and has a test split only; learn on {OLD[name]}")
    if name == "c4-old":
        return long_document_windows(_c4("test"), tokenizer, seq_len)
    ids = all_tokens(tokenizer, _text(name, split), f"{name} ({split})")
    cut = WINDOWS * seq_len if name == "c4-256" and split == "test" else None
    return torch.tensor(ids[:cut], dtype=torch.long)


def _text(name: str, split: str) -> str:
    if name.startswith("c4"):
        return " ".join(_c4(split))
    if name == "wikitext2":
        return "\n\n".join(_wikitext(split))
    return "\n\n".join(_ptb("validation")) if name == "ptb-old" else " ".join(_ptb(split))


def long_document_windows(documents: list[str], tokenizer: Tokenizer, seq_len: int, seed: int = 0) -> Tensor:
    """The old C4 evaluation: 256 windows, each from a document drawn until it is longer than a window.

    The draws and so the windows are those of the reference code. A token covers at least one byte, so documents with
    too few bytes are not tokenised. Returns the windows one after the other, (256 * seq_len,).
    """
    long = {
        i: ids
        for i, text in enumerate(documents)
        if len(text.encode()) >= seq_len and len(ids := tokenizer(text, verbose=False)["input_ids"]) > seq_len
    }
    if not long:
        raise InputError(f"no document has more than {seq_len} tokens; give a smaller sequence length")
    rng = random.Random(seed)
    windows = []
    for _ in range(WINDOWS):
        while (i := rng.randint(0, len(documents) - 1)) not in long:
            pass
        start = rng.randint(0, len(long[i]) - seq_len - 1)
        windows.append(torch.tensor(long[i][start : start + seq_len], dtype=torch.long))
    return torch.cat(windows)


def _folder() -> Path | None:
    root = os.environ.get("CTPLAB_DATA")
    return Path(root) if root else None


def _lines(path: Path) -> list[str]:
    return io.StringIO(read_text(path)).readlines()  # as a file: only "\n" ends a line


def _c4(split: str) -> list[str]:
    folder = _folder()
    if folder is not None:
        first, last = {"train": (0, 850), "validation": (850, 900), "test": (900, None)}[split]
        return read_texts(folder / "c4" / "c4_sample.jsonl")[first:last]
    part = "validation.00000-of-00008" if split == "test" else "train.00000-of-01024"
    rows = _from_hub("allenai/c4", data_files={"x": f"en/c4-{part}.json.gz"}, split="x")
    first, last = {"train": (0, 5000), "validation": (5000, 5500), "test": (0, 1100)}[split]
    return rows[first:last]["text"]


def _wikitext(split: str) -> list[str]:
    """Rows as in the data set: a line with its line break, or an empty string for a blank line."""
    folder = _folder()
    if folder is not None:
        file = {"train": "wiki.train.tokens", "validation": "wiki.valid.raw", "test": "wiki.test.raw"}[split]
        return [line if line.strip() else "" for line in _lines(folder / "wikitext-2" / file)]
    return list(_from_hub("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"])


def _ptb(split: str) -> list[str]:
    folder = _folder()
    if folder is not None:
        file = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}[split]
        return [line.strip() for line in _lines(folder / "ptb" / file)]
    # The data set itself is a script, which datasets 4 and later does not run. The hub keeps a converted copy.
    rows = _from_hub("ptb-text-only/ptb_text_only", "penn_treebank", split=split, revision="refs/convert/parquet")
    return list(rows["sentence"])


def _from_hub(*where: str, **options: Any) -> Any:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise InputError(f"{where[0]} needs the folder CTPLAB_DATA, or 'pip install datasets' and a hub") from None
    try:
        with hub.or_cache():
            return load_dataset(*where, **options)
    except Exception as error:  # the hub raises many kinds; the user needs one line
        reason = type(error).__name__
        raise InputError(
            f"cannot get {where[0]} from the hub ({reason}); set CTPLAB_DATA to a folder of texts"
        ) from error
