"""What a notebook claims to have shown: each claim is a test, and "cannot tell" is one of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from ctplab.measure.stats import Interval, mcnemar

LEVEL = 0.05
WORDS = {True: "yes", False: "no", None: "cannot tell"}


@dataclass(frozen=True)
class Claim:
    """``so``: None if the numbers cannot tell. ``evidence``: what was looked at."""

    so: bool | None
    evidence: str = ""


def above(value: Interval, limit: float = 0.0) -> Claim:
    """A value is above ``limit``: its whole interval is."""
    so = True if value.low > limit else False if value.high < limit else None
    return Claim(so, f"{value}")


def below(value: Interval, limit: float = 0.0) -> Claim:
    """A value is below ``limit``: its whole interval is."""
    so = True if value.high < limit else False if value.low > limit else None
    return Claim(so, f"{value}")


def larger(first: Interval, second: Interval) -> Claim:
    """One value is larger than another: their intervals do not meet. A paired test would tell more, and sooner."""
    so = True if first.low > second.high else False if first.high < second.low else None
    return Claim(so, f"{first} against {second}")


def more_right(first: Sequence[bool], second: Sequence[bool]) -> Claim:
    """One arm is right on more questions than another, by McNemar's exact test on the same questions."""
    won = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    p = mcnemar(list(first), list(second))
    return Claim(None if p >= LEVEL else won > lost, f"{won} won, {lost} lost, p = {p:.2g}")


def all_of(*claims: Claim) -> Claim:
    """Every one of ``claims``: no if one is no, else cannot tell if one cannot."""
    answers = [claim.so for claim in claims]
    so = False if False in answers else None if None in answers else True
    return Claim(so, "; ".join(claim.evidence for claim in claims if claim.evidence))


def check(claims: dict[str, bool | Claim], *, as_shipped: bool) -> None:
    """Say of every claim whether it holds, and by what.

    A bool is a claim about numbers that are no samples. ``as_shipped``: model, text and level are those that the claims
    were written about. Then none may be contradicted: raises AssertionError naming those that are. Elsewhere they are
    questions, and a no is an answer.
    """
    if not as_shipped:
        print("Claims about the embedded model and the settings as they come. Do they hold here too?")
    found = {text: claim if isinstance(claim, Claim) else Claim(claim) for text, claim in claims.items()}
    for text, claim in found.items():
        print(f"{WORDS[claim.so]:11}  {text}" + (f"  ({claim.evidence})" if claim.evidence else ""))
    wrong = [text for text, claim in found.items() if claim.so is False]
    assert not wrong or not as_shipped, f"no longer true: {'; '.join(wrong)}"
