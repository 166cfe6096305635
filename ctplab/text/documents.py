"""Read text files as documents, and split them."""

import json
from pathlib import Path

from ctplab.errors import InputError

SPLITS = ("train", "validation", "test")


def read_documents(path: Path) -> list[str]:
    """Documents of a file: the ``text`` of each line (.jsonl), else parts between ``<|endoftext|>`` or blank lines."""
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


def read_splits(paths: str) -> dict[str, list[str]]:
    """Read ``TRAIN,VALIDATION,TEST``, or split one file 90/5/5 by document (between words if it has fewer than 20)."""
    files = [Path(part) for part in paths.split(",")]
    if len(files) == 3:
        return dict(zip(SPLITS, map(read_documents, files), strict=True))
    if len(files) != 1:
        raise InputError(f"file: takes one path, or three (file:TRAIN,VALIDATION,TEST), not {paths!r}")
    documents = read_documents(files[0])
    if not documents:
        raise InputError(f"{files[0]} has no text")
    if len(documents) < 20:  # too few to share out: cut the text itself, between words
        words = "\n\n".join(documents).split(" ")
        a, b = (round(share * len(words)) for share in (0.9, 0.95))
        return {"train": [" ".join(words[:a])], "validation": [" ".join(words[a:b])], "test": [" ".join(words[b:])]}
    a, b = (round(share * len(documents)) for share in (0.9, 0.95))
    return {"train": documents[:a], "validation": documents[a:b], "test": documents[b:]}
