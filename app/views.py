"""How answers look: cards as HTML, word differences and token scores as spans. Strings in, strings out."""

from difflib import SequenceMatcher
from html import escape
from typing import Any

from ctplab.prompts.arms import COLOURS, KINDS

SAME, ADDED, MISSING = None, "only here", "only in full"
#: Upper edge in nats and label of every step; the colour deepens from one to the next.
STEPS = ((0.1, "< 0.1 nats"), (0.5, "0.1 to 0.5"), (2.0, "0.5 to 2"), (5.0, "2 to 5"), (float("inf"), "> 5 nats"))
SCORE_COLOURS = dict(
    zip((label for _, label in STEPS), ("#d9f0e3", "#fff3b0", "#fdc086", "#f0735a", "#b2182b"), strict=True)
)


def size(count: int) -> str:
    """A number of bytes in words."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _badge(record: dict[str, Any]) -> str:
    if record["correct"] is None:
        words = {"stopped": "stopped", "failed": "failed"}.get(record["state"])
        return f'<span class="badge {"bad" if words == "failed" else "note"}">{words}</span>' if words else ""
    if record["correct"]:
        return '<span class="badge good">✓ correct</span>'
    return f'<span class="badge bad">✗ it is {escape(record["known"])}</span>'


def _text(record: dict[str, Any]) -> str:
    if record["error"]:
        return f'<p class="text failed" role="alert">{escape(record["error"])}</p>'
    if record["state"] in ("waiting", "running"):
        return f'<p class="text">{escape(record["text"])}<span class="caret" aria-hidden="true"></span></p>'
    if not record["text"]:
        return '<p class="text empty">(the answer is empty)</p>'
    return f'<p class="text">{escape(record["text"])}</p>'


def card(record: dict[str, Any]) -> str:
    """One arm's answer with its figures."""
    rate = f"{record['rate']:.0f} tok/s" if record["rate"] else "–"
    first = f"{1000 * record['first']:.0f} ms" if record["first"] is not None else "–"
    figures = (("Speed", rate), ("First token", first), (f"Model {record['model']}", size(record["bytes"])))
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    name = record["arm"]
    return (
        f'<section class="arm" id="arm-{escape(name.replace("+", "-"))}" style="--arm:{COLOURS[name]}" '
        f'aria-label="Answer of the arm {escape(name)}"><div class="top"><h3>{escape(name)}</h3>{_badge(record)}</div>'
        f'<p class="what">{escape(KINDS[name].says)}</p>{_text(record)}<dl>{rows}</dl></section>'
    )


def cards(records: list[dict[str, Any]]) -> str:
    """All answers side by side; a screen reader is told once they are complete."""
    busy = "true" if any(r["state"] in ("waiting", "running") for r in records) else "false"
    return f'<div class="arms" role="status" aria-live="polite" aria-busy="{busy}">{"".join(map(card, records))}</div>'


def waiting(arms: list[str]) -> str:
    """Empty cards, which Generate fills."""
    html = "".join(
        f'<section class="arm" style="--arm:{COLOURS[name]}" aria-label="The arm {escape(name)}"><div class="top">'
        f'<h3>{escape(name)}</h3></div><p class="what">{escape(KINDS[name].says)}</p><p class="text empty">'
        "Press Generate (Ctrl+Enter).</p></section>"
        for name in arms
    )
    return f'<div class="arms">{html}</div>'


def difference(reference: str, text: str) -> list[tuple[str, str | None]]:
    """Word by word: what ``text`` shares with ``reference``, what it adds and what it lacks."""
    before, after = reference.split(), text.split()
    spans: list[tuple[str, str | None]] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            spans.append((" ".join(after[c:d]) + " ", SAME))
            continue
        spans += [(" ".join(before[a:b]), MISSING), (" ", SAME)] if b > a else []
        spans += [(" ".join(after[c:d]), ADDED), (" ", SAME)] if d > c else []
    return spans or [("(empty)", SAME)]


def difference_colours(name: str) -> dict[str, str]:
    """What only the arm ``name`` says is in its own colour, and what only the full model says in that one's."""
    return {ADDED: COLOURS[name], MISSING: COLOURS["full"]}


def scored(tokens: list[str], values: list[float | None]) -> list[tuple[str, str | None]]:
    """Every token with the step that its score falls into; None for the first, which has no score."""
    return [
        (token, None if value is None else next(label for edge, label in STEPS if value < edge))
        for token, value in zip(tokens, values, strict=True)
    ]


def markdown(question: str, records: list[dict[str, Any]]) -> str:
    """The answers as a Markdown table."""
    lines = ["| arm | model | answer | correct | tokens | tok/s | first token (ms) | model bytes |"]
    lines.append("|---|---|---|---|---:|---:|---:|---:|")
    for r in records:
        answer = (r["error"] or r["text"]).replace("|", "\\|").replace("\n", "<br>")
        right = {True: "yes", False: f"no ({r['known']})", None: ""}[r["correct"]]
        rate = f"{r['rate']:.0f}" if r["rate"] else ""
        first = f"{1000 * r['first']:.0f}" if r["first"] is not None else ""
        cells = (r["arm"], r["model"], answer, right, r["tokens"], rate, first, r["bytes"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return f"**{question}**\n\n" + "\n".join(lines) + "\n"
