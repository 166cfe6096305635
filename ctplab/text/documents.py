"""Read text files as documents, and split them.

| file | a document is |
|---|---|
| ``.jsonl``, rows with ``text`` or ``content`` | that field |
| ``.jsonl``, rows with ``messages`` | a conversation: a list of ``{"role": ..., "content": ...}`` |
| ``.jsonl``, rows with ``prompt`` and ``completion`` | a conversation of two turns |
| any other | a part between ``<|endoftext|>``, or between blank lines |

The first row says which; ``PATH#FIELD`` chooses if it has several, or names a text field of another name.
"""

import json
from pathlib import Path
from typing import Any

from ctplab.errors import InputError
from ctplab.text.chat import ASSISTANT, Conversation, question

SPLITS = ("train", "validation", "test")
FIELDS = ("text", "content", "messages", "prompt")
"""The fields that are known; ``prompt`` comes with ``completion``."""

Document = str | Conversation


def read_documents(path: Path, field: str | None = None) -> list[Document]:
    """Documents of a file. ``field``: which one of a row's fields; None: the one that is known.

    Raises InputError with one line, which names the row, if the file cannot be read so.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    if path.suffix == ".jsonl":
        return _rows(content.split("\n"), path, field)
    if field is not None:
        raise InputError(f"{path} has no fields: only .jsonl files have")
    mark = "<|endoftext|>" if "<|endoftext|>" in content else "\n\n"
    return [part.strip("\n") for part in content.split(mark) if part.strip()]


def _rows(lines: list[str], path: Path, field: str | None) -> list[Document]:
    found: list[Document] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise InputError("it is no JSON object")
            field = field or _known(row)
            found.append(_document(row, field, f"{path}, line {number}"))
        except (json.JSONDecodeError, InputError) as error:
            reason = error if isinstance(error, InputError) else "it is no JSON"
            raise InputError(f"{path}, line {number}: {reason}") from None
    return found


def _known(row: dict[str, Any]) -> str:
    """The field of this row that is known."""
    found = [field for field in FIELDS if field in row]
    if not found:
        raise InputError("it needs a 'text' field, or 'content', or 'messages', or 'prompt' and 'completion'")
    if len(found) > 1:
        raise InputError(f"it has {' and '.join(found)}; choose one, as in file:PATH#{found[0]}")
    return found[0]


def _document(row: dict[str, Any], field: str, where: str) -> Document:
    if field == "messages":
        return Conversation(_messages(row.get(field)), where)
    if field == "prompt":
        turns = (*question(_text(row, "prompt")), {"role": ASSISTANT, "content": _text(row, "completion")})
        return Conversation(turns, where, pair=True)
    return _text(row, field)


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise InputError(f"it has no '{field}' field that is text")
    return row[field]


def _messages(given: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise InputError("'messages' must be a list of at least one message")
    for message in given:
        if not isinstance(message, dict):
            raise InputError('every message must be an object such as {"role": "user", "content": "Hello"}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InputError(f"every message needs a '{key}' that is text")
    return tuple({"role": message["role"], "content": message["content"]} for message in given)


def read_texts(path: Path) -> list[str]:
    """The ``text`` of every row of a ``.jsonl`` file."""
    return [document for document in read_documents(path, "text") if isinstance(document, str)]


def _file(path: str) -> list[Document]:
    """Documents of ``PATH`` or ``PATH#FIELD``. A ``#`` may also be part of the path."""
    name, mark, field = path.rpartition("#")
    return read_documents(Path(path)) if not mark or Path(path).exists() else read_documents(Path(name), field)


def read_splits(paths: str) -> dict[str, list[Document]]:
    """Read ``TRAIN,VALIDATION,TEST``, or split one file 90/5/5 by document (between words if it has fewer than 20).

    A file of conversations needs at least three of them to be split.
    """
    files = paths.split(",")
    if len(files) == 3:
        return dict(zip(SPLITS, map(_file, files), strict=True))
    if len(files) != 1:
        raise InputError(f"file: takes one path, or three (file:TRAIN,VALIDATION,TEST), not {paths!r}")
    documents = _file(files[0])
    n = len(documents)
    if n == 0:
        raise InputError(f"{files[0]} has no text")
    texts = [document for document in documents if isinstance(document, str)]
    if texts and n < 20:  # too few to share out: cut the text itself, between words
        words = "\n\n".join(texts).split(" ")
        a, b = (round(share * len(words)) for share in (0.9, 0.95))
        return {"train": [" ".join(words[:a])], "validation": [" ".join(words[a:b])], "test": [" ".join(words[b:])]}
    if n < 3:
        raise InputError(f"{files[0]} has {n} conversations; give at least three, or file:TRAIN,VALIDATION,TEST")
    b = min(round(0.95 * n), n - 1)
    a = min(round(0.9 * n), b - 1)
    return {"train": documents[:a], "validation": documents[a:b], "test": documents[b:]}
