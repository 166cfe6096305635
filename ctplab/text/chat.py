"""Conversations: how a tokenizer's chat template writes them down, and which of their tokens answer.

A template marks who speaks, and it often adds a start token or a system turn of its own. So what it writes is read
without any other start token. A *turn* is one message with the template's marks around it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ctplab.errors import InputError
from ctplab.models import Tokenizer

ASSISTANT = "assistant"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Some templates mark the assistant's part themselves."""
PROBE = "ctplab probe"

Message = dict[str, str]
"""``role`` and ``content``."""


@dataclass(frozen=True)
class Conversation:
    """Messages in turns."""

    messages: tuple[Message, ...]
    where: str = ""
    """File and line, for errors."""
    pair: bool = False
    """A prompt and its completion: without a template, they are joined as they are."""


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer knows how to write a conversation down."""
    return bool(getattr(tokenizer, "chat_template", None))


def question(text: str) -> list[Message]:
    """One user's turn."""
    return [{"role": "user", "content": text}]


def _applied(tokenizer: Tokenizer, messages: Sequence[Message], **settings: Any) -> Any:
    """What the template makes of ``messages``. Raises InputError if there is none, or if it refuses them."""
    from jinja2 import TemplateError

    if not has_template(tokenizer):
        raise InputError("this model's tokenizer has no chat template, so it cannot read a conversation")
    try:
        return tokenizer.apply_chat_template(list(messages), **settings)
    except (TemplateError, TypeError, ValueError) as error:  # templates call Python's own operators
        reason = " ".join(str(error).split())
        raise InputError(f"the chat template refuses this conversation ({reason})") from None


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool = False) -> str:
    """The text that the template makes of ``messages``; ``reply``: up to where the assistant's next answer begins.

    Raises InputError if there is no template, or if it refuses these messages.
    """
    return _applied(tokenizer, messages, tokenize=False, add_generation_prompt=reply)


def read(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a rendered text. Its template has written all marks, so no start token is added."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token that ends an assistant's turn; None if the template writes none, or if there is no template.

    It is often not the tokenizer's ``eos_token``.
    """
    if not has_template(tokenizer):
        return None
    text = render(tokenizer, [*question("?"), {"role": ASSISTANT, "content": PROBE}])
    _, _, behind = text.rpartition(PROBE)
    return next((i for i in read(tokenizer, behind) if i in tokenizer.added_tokens_decoder), None)


def all_ids(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """The ids of a conversation. Raises InputError, with its file and line, if the template refuses it."""
    with _told_where(conversation):
        return read(tokenizer, _written(tokenizer, conversation))


def ids_and_answers(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """(ids, whether each is the assistant's) of a conversation; the ids are those of :func:`all_ids`.

    The assistant's are the content of its turns and the token that ends each. The template's other marks are not.
    Raises InputError, with the conversation's file and line, if the template refuses it.
    """
    with _told_where(conversation):
        text = _written(tokenizer, conversation)
        if not has_template(tokenizer):
            return _inside(tokenizer, text, [(len(conversation.messages[0]["content"]), len(text))])
        if GENERATION.search(str(tokenizer.chat_template)):
            return _marked(tokenizer, conversation.messages)
        return _inside(tokenizer, text, _spans(tokenizer, conversation.messages, text))


def _written(tokenizer: Tokenizer, conversation: Conversation) -> str:
    if conversation.pair and not has_template(tokenizer):
        return "".join(message["content"] for message in conversation.messages)
    return render(tokenizer, conversation.messages)


@contextmanager
def _told_where(conversation: Conversation) -> Iterator[None]:
    """Put the conversation's file and line in front of what an InputError says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{conversation.where}: {error}" if conversation.where else str(error)) from None


def _marked(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """(ids, whether each is the assistant's) as a template says it that marks the assistant's part itself."""
    found: Any = _applied(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return found["input_ids"], [bool(mark) for mark in found["assistant_masks"]]


def _spans(tokenizer: Tokenizer, messages: Sequence[Message], whole: str) -> list[tuple[int, int]]:
    """Where in the rendered conversation ``whole`` each of the assistant's answers begins and ends.

    The conversation is rendered turn by turn: an answer is what its turn adds to the text that asks for it.
    """
    ending = end_of_turn(tokenizer)
    mark = None if ending is None else tokenizer.decode([ending])
    found = []
    for turn, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before, after = render(tokenizer, messages[:turn], reply=True), render(tokenizer, messages[: turn + 1])
        if not (whole.startswith(after) and after.startswith(before)):
            raise InputError("the chat template rewrites earlier turns, so its answers cannot be told; use loss='all'")
        place = -1 if mark is None else after.rfind(mark, len(before))
        found.append((len(before), len(after) if place < 0 else place + len(mark or "")))
    return found


def _inside(tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    """(ids, whether each begins inside one of ``spans``) of ``text``, tokenised in one piece."""
    if not tokenizer.is_fast:
        raise InputError("this tokenizer does not tell where its tokens stand (it is a slow one); use loss='all'")
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in found["offset_mapping"]]
    return found["input_ids"], [any(first <= at < last for first, last in spans) for at in starts]
