"""Read text files as documents, and split them.

| file | a document is |
|---|---|
| ``.jsonl``, rows with ``text`` or ``content`` | that field |
| ``.jsonl``, rows with ``messages`` | a conversation: a list of ``{"role": ..., "content": ...}`` |
| ``.jsonl``, rows with ``prompt`` and ``completion`` | a conversation of two turns |
| ``.json``, a list of such rows, or lines as in ``.jsonl`` | likewise |
| any other | a part between ``<|endoftext|>``, or between blank lines |

The first row says which; ``PATH#FIELD`` chooses if it has several, or names a text field of another name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctplab.errors import InputError
from ctplab.text.chat import ASSISTANT, Conversation, question
from ctplab.text_files import parse_json, read_text, shown

LINES = (".jsonl", ".ndjson")
LEAST_SHARE = 50
"""A split by words must give each part at least a fiftieth of the characters; the shares are a twentieth."""
SPLITS = ("train", "validation", "test")
FIELDS = ("text", "content", "messages", "prompt")
"""The fields that are known; ``prompt`` comes with ``completion``."""

Document = str | Conversation


def read_documents(path: Path, field: str | None = None) -> list[Document]:
    """Documents of a file. ``field``: which one of a row's fields; None: the one that is known.

    Raises InputError with one line, which names the row, if the file cannot be read so.
    """
    kind = path.suffix.lower()
    content = read_text(path)
    if kind in LINES or (kind == ".json" and _holds_lines(content)):
        return _rows(_parsed_lines(content, path), path, field)
    if kind == ".json":
        return _rows(_parsed_array(content, path), path, field)
    if field is not None:
        raise InputError(f"{path} has no fields: only .jsonl and .json files have")
    mark = "<|endoftext|>" if "<|endoftext|>" in content else "\n\n"
    return [part.strip("\n") for part in content.split(mark) if part.strip()]


def _holds_lines(content: str) -> bool:
    """Whether the first line of a ``.json`` file is an object of its own, as in ``.jsonl``."""
    first, _, rest = content.strip().partition("\n")
    return bool(rest) and first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def _parsed_lines(content: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not blank. Only ``\\n`` ends a line: U+2028 may stand inside a string."""
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line, finite=False)
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from None


def _parsed_array(content: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every item of an array."""
    try:
        found = parse_json(content, finite=False)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(found, list):
        raise InputError(f'{path} holds no list of rows; give a .jsonl file, or a list such as [{{"text": ...}}]')
    yield from ((f"row {number}", row) for number, row in enumerate(found, 1))


def _rows(rows: Iterator[tuple[str, Any]], path: Path, field: str | None) -> list[Document]:
    found: list[Document] = []
    for place, row in rows:
        try:
            if not isinstance(row, dict):
                raise InputError('it is no JSON object such as {"text": "..."}')
            field = field or _known(row)
            found.append(_document(row, field, f"{path}, {place}"))
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from None
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
    if field not in row:
        raise InputError(f"it has no '{field}' field that is text")
    if not isinstance(row[field], str):
        raise InputError(
            f"it has no '{field}' field that is text, but {shown(row[field])}; remove the row, or quote it"
        )
    return _whole(row[field], field)


def _whole(text: str, field: str) -> str:
    """``text``. Raises InputError if it holds half of a surrogate pair, which no UTF-8 text can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"'{field}' holds {half}, half of a character: remove it, or write \\ufffd for it") from None
    return text


def _messages(given: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise InputError("'messages' must be a list of at least one message")
    for message in given:
        if not isinstance(message, dict):
            raise InputError('every message must be an object such as {"role": "user", "content": "Hello"}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InputError(f"every message needs a '{key}' that is text")
    return tuple({key: _whole(message[key], key) for key in ("role", "content")} for message in given)


def read_texts(path: Path) -> list[str]:
    """The ``text`` of every row of a ``.jsonl`` file."""
    return [document for document in read_documents(path, "text") if isinstance(document, str)]


def _file(path: str) -> list[Document]:
    """Documents of ``PATH`` or ``PATH#FIELD``. A ``#`` may also be part of the path."""
    name, mark, field = path.rpartition("#")
    return read_documents(Path(path)) if not mark or Path(path).exists() else read_documents(Path(name), field)


def _cut(text: str) -> tuple[str, str, str]:
    """``text`` as 90, 5 and 5 percent: between words, or between characters if words are no measure of its length.

    Chinese, Thai or DNA have no spaces, or a few in one place only.
    """
    words = text.split(" ")
    a, b = (round(share * len(words)) for share in (0.9, 0.95))
    parts = " ".join(words[:a]), " ".join(words[a:b]), " ".join(words[b:])
    if min(map(len, parts)) < len(text) // LEAST_SHARE:
        a, b = (round(share * len(text)) for share in (0.9, 0.95))
        parts = text[:a], text[a:b], text[b:]
    return parts


def read_splits(paths: str) -> dict[str, list[Document]]:
    """Read ``TRAIN,VALIDATION,TEST``, or split one file 90/5/5 by document (inside the text if it has fewer than 20).

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
        return dict(zip(SPLITS, ([part] for part in _cut("\n\n".join(texts))), strict=True))
    if n < 3:
        raise InputError(f"{files[0]} has {n} conversations; give at least three, or file:TRAIN,VALIDATION,TEST")
    b = min(round(0.95 * n), n - 1)
    a = min(round(0.9 * n), b - 1)
    return {"train": documents[:a], "validation": documents[a:b], "test": documents[b:]}
