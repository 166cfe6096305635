"""Is an answer right? Exactly where answers have a form of their own, tolerantly for free text, and sometimes unsaid.

A free answer is right if it says the expected words as a phrase; case, articles and punctuation do not matter. No
verdict is given if that would mislead: the phrase is part of a longer name, is denied, or stood in the question. Pure.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ctplab.atlas.questions import Question, normalise

WORD = re.compile(r"\w+(?:['’.-]\w+)*")
ARTICLES = {"a", "an", "the"}
DENIALS = {"not", "no", "never", "neither", "nor", "without", "isn't", "wasn't", "aren't", "doesn't", "don't", "cannot"}
SMALL = {"in", "at", "on", "of", "is", "it", "it's", "to", "from", "by", "near", "and", "or", "into", "answer", "yes"}
"""Words that may have a capital before a name without belonging to it."""
NEAR = 4  # words before a phrase that may deny it


@dataclass(frozen=True)
class Verdict:
    """``right``: None if nothing can be said. ``how``: what was compared, in words."""

    right: bool | None
    how: str


@dataclass(frozen=True)
class Words:
    """The words of a text in its own case, without articles and accents."""

    words: tuple[str, ...]
    joined: tuple[bool, ...]
    """Whether nothing but spaces and articles stands between a word and the one before it."""

    @classmethod
    def of(cls, text: str) -> Self:
        plain = unicodedata.normalize("NFKD", text).replace("’", "'")
        plain = "".join(c for c in plain if not unicodedata.combining(c))
        found, joined, end, whole = [], [], 0, False
        for match in WORD.finditer(plain):
            whole = not plain[end : match.start()].strip() and (whole or end == 0 or plain[end - 1].isalnum())
            end = match.end()
            if match[0].lower() not in ARTICLES:
                found.append(match[0])
                joined.append(whole and len(found) > 1)
        return cls(tuple(found), tuple(joined))

    def places(self, phrase: Self) -> list[int]:
        """Where the words of ``phrase`` begin in these, whatever their case."""
        wanted, these = [word.lower() for word in phrase.words], [word.lower() for word in self.words]
        n = len(wanted)
        return [i for i in range(len(these) - n + 1) if these[i : i + n] == wanted] if wanted else []

    def in_longer_name(self, at: int, n: int) -> bool:
        """Whether the ``n`` words from ``at`` are part of a longer name: *York* in *New York*."""

        def name(i: int, joint: int) -> bool:
            inside = 0 <= i < len(self.words) and self.joined[joint]
            return inside and self.words[i][0].isupper() and self.words[i].lower() not in SMALL

        return self.words[at][0].isupper() and (name(at - 1, at) or name(at + n, min(at + n, len(self.words) - 1)))

    def denied(self, at: int) -> bool:
        """Whether one of the words just before ``at`` denies what follows."""
        return bool({word.lower() for word in self.words[max(0, at - NEAR) : at]} & DENIALS)


def says(answer: str, expected: str, question: str = "") -> Verdict:
    """Whether a free answer says the expected words as a phrase."""
    phrase, text = Words.of(expected), Words.of(answer)
    if not phrase.words:
        return Verdict(None, "")
    if Words.of(question).places(phrase):
        return Verdict(None, f"no verdict: {expected!r} stands in the question")
    found = text.places(phrase)
    if not found:
        return Verdict(False, f"does not say {expected!r}")
    alone = [at for at in found if not text.in_longer_name(at, len(phrase.words))]
    if not alone:
        return Verdict(None, f"no verdict: {expected!r} is part of a longer name here")
    if all(text.denied(at) for at in alone):
        return Verdict(None, f"no verdict: {expected!r} may be denied here")
    return Verdict(True, f"says {expected!r}")


def judge(answer: str, expected: Sequence[str], *, exact: bool = False, question: str = "") -> Verdict:
    """The verdict on ``answer`` if any of ``expected`` is right; none without an expected answer.

    ``exact``: the answer is one line in the embedded world's form, and must be the expected one and nothing else.
    """
    if not expected:
        return Verdict(None, "")
    if exact:
        right = any(normalise(answer) == normalise(one) for one in expected)
        return Verdict(right, "is exactly that" if right else f"is not {expected[0]!r} (exact match)")
    found = [says(answer, one, question) for one in expected]
    for wanted in (True, None):
        for verdict in found:
            if verdict.right is wanted:
                return verdict
    return found[0]


def marked(answers: Sequence[str], questions: Sequence[Question], *, exact: bool) -> list[bool]:
    """Which answers to the embedded world's questions are right: exactly, or for any other model tolerantly."""
    pairs = zip(answers, questions, strict=True)
    return [judge(answer, [q.answer], exact=exact, question=q.text).right is True for answer, q in pairs]
