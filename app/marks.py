"""Marks inside the answer cards: words that differ from the full model's, and every token with its score. HTML out."""

import json
from difflib import SequenceMatcher
from html import escape
from typing import Any

#: Upper edge in nats and label of every step; the colour (class ``s0`` to ``s4`` of style.css) deepens with it.
STEPS = ((0.1, "< 0.1 nats"), (0.5, "0.1 to 0.5"), (2.0, "0.5 to 2"), (5.0, "2 to 5"), (float("inf"), "> 5 nats"))
SHOWN = 5  # alternatives beside a token
LEGEND = "".join(f'<span class="tok s{i}">{escape(label)}</span>' for i, (_, label) in enumerate(STEPS))


def difference(reference: str, text: str) -> list[tuple[str, str]]:
    """Word by word: what ``text`` shares with ``reference`` (``same``), what it adds and what it lacks."""
    before, after = reference.split(), text.split()
    spans: list[tuple[str, str]] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            spans.append((" ".join(after[c:d]), "same"))
            continue
        spans += [(" ".join(before[a:b]), "missing")] if b > a else []
        spans += [(" ".join(after[c:d]), "added")] if d > c else []
    return spans


def differing(reference: str, text: str) -> str:
    """:func:`difference` as HTML: ``del`` and ``ins``, which do not need colour to be told apart."""
    tags = {"same": ("", ""), "missing": ("<del>", "</del>"), "added": ("<ins>", "</ins>")}
    found = [f"{tags[kind][0]}{escape(words)}{tags[kind][1]}" for words, kind in difference(reference, text)]
    return f'<p class="text">{" ".join(found) or "(empty)"}</p>'


def step(value: float | None) -> str:
    """The class of a score; empty for the first token, which has none."""
    if value is None:
        return ""
    return f"s{next(i for i, (edge, _) in enumerate(STEPS) if value < edge or edge == STEPS[-1][0])}"


def shown(token: str) -> str:
    """A token as text that can be seen: spaces alone and line breaks too."""
    return token.replace("\n", "⏎") if token.strip(" ") else token.replace(" ", "␣") or "∅"


def tokens(seen: dict[str, Any], arm: str, key: str) -> str:
    """The text of the closer look in one arm's colours: a button for every token, one of which is chosen."""
    values, last = seen["arms"][arm][key], len(seen["tokens"]) - 1
    buttons = "".join(
        f'<button type="button" class="tok {step(value)}" data-at="{at}" tabindex="{0 if at == last else -1}" '
        f'aria-pressed="{"true" if at == last else "false"}">{escape(shown(token))}</button>'
        for at, (token, value) in enumerate(zip(seen["tokens"], values, strict=True))
    )
    return f'<div class="toks" role="group" aria-label="Tokens as {escape(arm)} sees them">{buttons}</div>'


def mean(values: list[float | None] | None) -> float | None:
    """Mean of the scores that are there."""
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None


def chosen(seen: dict[str, Any], arm: str, at: int) -> str:
    """What an arm expected at one place: the token's scores and the likeliest tokens there."""
    view = seen["arms"][arm]
    score, kl = view["surprisal"][at], (view["kl"] or [None] * len(seen["tokens"]))[at]
    facts = [] if score is None else [f"{score:.2f} nats"]
    facts += [] if kl is None else [f"KL {kl:.2f}"]
    rows = "".join(
        f"<li><span>{escape(repr(token))}</span><span>{100 * p:.1f}%</span></li>"
        for token, p in view["alternatives"][at][:SHOWN]
    )
    name = f'<p class="named">{escape(repr(seen["tokens"][at]))} <span>{" · ".join(facts)}</span></p>'
    return f'<div class="alts" data-arm="{escape(arm)}">{name}<ol>{rows}</ol></div>'


def means(seen: dict[str, Any], arm: str) -> str:
    """An arm's mean surprisal and mean KL to the full model, in a line."""
    view = seen["arms"][arm]
    found = (("mean surprisal", mean(view["surprisal"])), ("mean KL to full", mean(view["kl"])))
    words = " · ".join(f"{name} {value:.2f}" for name, value in found if value is not None)
    return f'<p class="what">{words}</p>'


def payload(seen: dict[str, Any]) -> str:
    """What the page's script needs to name a clicked token, as an attribute's value."""
    arms = {
        name: {
            "s": [None if v is None else round(v, 2) for v in view["surprisal"]],
            "k": [None if v is None else round(v, 2) for v in view["kl"] or []],
            "a": [[[repr(t), round(100 * p, 1)] for t, p in place[:SHOWN]] for place in view["alternatives"]],
        }
        for name, view in seen["arms"].items()
    }
    return escape(json.dumps({"t": [repr(token) for token in seen["tokens"]], "arms": arms}), quote=True)
