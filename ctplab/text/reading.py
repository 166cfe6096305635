"""A text as ids, in the one way that all arms share: generating, looking, asking and scoring read it alike.

    prefix rows | start token | text            what every arm sees; rows only if the arm has a prefix

The *start* is a setting: ``auto`` does what the model's tokenizer does by default, ``token`` puts the start token in
front of the text, ``none`` does not. It never depends on the arm. A model that was trained behind a start token needs
it in front of every text, and two arms are only compared if they read the same tokens. A chat template writes its own
start. An end token is never written: the text goes on.
"""

from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.text import chat

STARTS = ("auto", "token", "none")
TEMPLATE = "chat template"
"""What :func:`start_of` says if the template decides."""


def check_start(start: str) -> None:
    """Raise InputError if ``start`` is none of STARTS."""
    if start not in STARTS:
        raise InputError(f"start must be one of {', '.join(STARTS)}, not {start!r}")


def start_token(tokenizer: Tokenizer) -> int | None:
    """The id of the start token, or of the end token if there is no start token. None if there is neither."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def written_first(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer writes in front of every text by default; often one, often none."""
    plain, whole = (_ids(tokenizer, "0", special) for special in (False, True))
    places = range(len(whole) - len(plain) + 1)
    return whole[: next((place for place in places if whole[place : place + len(plain)] == plain), 0)]


def start_ids(tokenizer: Tokenizer, start: str = "auto") -> list[int]:
    """The ids in front of a text. Raises InputError for ``token`` if the tokenizer has no start token."""
    check_start(start)
    first = [] if start == "none" else written_first(tokenizer)
    if start == "token" and not first:
        token = start_token(tokenizer)
        if token is None:
            raise InputError("this tokenizer has no start token; use start='none'")
        return [token]
    return first


def chats(tokenizer: Tokenizer, raw: bool) -> bool:
    """Whether a text is read as a turn of a conversation: the tokenizer has a template and ``raw`` is not set."""
    return not raw and chat.has_template(tokenizer)


def start_of(tokenizer: Tokenizer, start: str = "auto", raw: bool = False) -> str:
    """What stands between prefix and text, for people and for keys of results: ``<s>``, ``none``, or the template."""
    if chats(tokenizer, raw):
        return TEMPLATE
    ids = start_ids(tokenizer, start)
    return tokenizer.decode(ids) if ids else "none"


def written(tokenizer: Tokenizer, text: str, raw: bool = False) -> str:
    """What is sent for ``text``: a turn in the tokenizer's chat template, if it has one and ``raw`` is not set."""
    return chat.render(tokenizer, chat.question(text), reply=True) if chats(tokenizer, raw) else text


def encode(tokenizer: Tokenizer, text: str, *, raw: bool = False, start: str = "auto") -> list[int]:
    """The ids of ``text``, the same behind every arm.

    A chat template is used if the tokenizer has one (``raw`` turns it off); it writes the start itself. A text that
    begins with the start token already gets no second one. Raises InputError if there is nothing to read.
    """
    if not text.strip():
        raise InputError("the text is empty; give at least one word")
    if chats(tokenizer, raw):
        return chat.read(tokenizer, written(tokenizer, text))
    first, ids = start_ids(tokenizer, start), words(tokenizer, text)
    return ids if first and ids[: len(first)] == first else first + ids


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's own ids, with nothing around them. Raises InputError if there are none."""
    ids = _ids(tokenizer, text, special=False)
    if not ids:
        raise InputError("the text is empty; give at least one word")
    return ids


def _ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
