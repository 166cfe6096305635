"""How answers look: cards as HTML, with words or tokens marked in place. Strings in, strings out."""

from collections.abc import Sequence
from html import escape
from typing import Any

from ctplab.app import marks
from ctplab.prompts.arms import COLOURS, KINDS
from ctplab.text.reading import TEMPLATE

TEXT, DIFFERENCE, SURPRISAL, KL = "Text", "Difference from full", "Surprisal", "KL to full"
VIEWS = (TEXT, DIFFERENCE, SURPRISAL, KL)


def size(count: int) -> str:
    """A number of bytes in words."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _badge(record: dict[str, Any]) -> str:
    """The verdict and how it was reached; nothing if there is none."""
    words = {"stopped": "stopped", "failed": "failed"}.get(record["state"])
    if words:
        return f'<span class="badge {"bad" if words == "failed" else "note"}">{words}</span>'
    if record["correct"] is None:
        return f'<span class="badge quiet">{escape(record["how"])}</span>' if record["how"] else ""
    if record["correct"]:
        return f'<span class="badge good" title="{escape(record["how"], quote=True)}">✓ correct</span>'
    if "exact" in record["how"]:
        return f'<span class="badge bad">✗ it is {escape(record["known"])}</span>'
    return f'<span class="badge note">{escape(record["how"])}</span>'


def _text(record: dict[str, Any]) -> str:
    if record["error"]:
        return f'<p class="text failed" role="alert">{escape(record["error"])}</p>'
    if record["state"] in ("waiting", "running"):
        return f'<p class="text">{escape(record["text"])}<span class="caret" aria-hidden="true"></span></p>'
    if not record["text"]:
        return '<p class="text empty">(the answer is empty)</p>'
    return f'<p class="text">{escape(record["text"])}</p>'


def _figures(record: dict[str, Any]) -> str:
    """Speed, first token and bytes of one arm, as far as they were measured."""
    rate = f"{record['rate']:.0f} tok/s" if record.get("rate") else "–"
    first = f"{1000 * record['first']:.0f} ms" if record.get("first") is not None else "–"
    model, count = record.get("model", ""), record.get("bytes", 0)
    figures = [("Speed", rate), ("First token", first), (f"Model {model}", size(count))] if model else []
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)


def _sent(record: dict[str, Any]) -> str:
    """The text that the model read, on demand."""
    if not record.get("sent"):
        return ""
    front = "" if record["arm"] in ("full", "compressed") else "(the rows of this arm) + "
    front += f"{record['start']} + " if record.get("start") not in (None, "", "none", TEMPLATE) else ""
    return f"<details><summary>Text that was sent</summary><pre>{escape(front + record['sent'])}</pre></details>"


def card(record: dict[str, Any], body: str = "", after: str = "") -> str:
    """One arm's answer. ``body`` stands in place of its plain text, ``after`` below it."""
    name = record["arm"]
    return (
        f'<section class="arm" id="arm-{escape(name.replace("+", "-"))}" style="--arm:{COLOURS[name]}" '
        f'aria-label="Answer of the arm {escape(name)}"><div class="top"><h3>{escape(name)}</h3>{_badge(record)}</div>'
        f'<p class="what">{escape(KINDS[name].says)}</p>{body or _text(record)}{after}<dl>{_figures(record)}</dl>'
        f"{_sent(record)}</section>"
    )


def cards(records: Sequence[dict[str, Any]]) -> str:
    """All answers side by side; a screen reader is told once they are complete."""
    busy = "true" if any(r["state"] in ("waiting", "running") for r in records) else "false"
    return f'<div class="arms" role="status" aria-live="polite" aria-busy="{busy}">{"".join(map(card, records))}</div>'


def differences(records: Sequence[dict[str, Any]], reference: str) -> str:
    """The cards, with what differs from the full model's answer marked in place."""
    found = [
        card(r, "" if r["arm"] == "full" or r["error"] else marks.differing(reference, r["text"])) for r in records
    ]
    legend = '<p class="legend"><del>only the full model says</del> <ins>only this arm says</ins></p>'
    return f'{legend}<div class="arms" aria-busy="false">{"".join(found)}</div>'


def looked(records: Sequence[dict[str, Any]], seen: dict[str, Any], view: str) -> str:
    """The cards, with the tokens of the closer look below each answer. Answers and verdicts stay in sight."""
    key, last, found = "kl" if view == KL else "surprisal", len(seen["tokens"]) - 1, []
    for record in records:
        name = record["arm"]
        after = ""
        if name in seen["arms"]:
            after = marks.means(seen, name) + marks.tokens(seen, name, key) + marks.chosen(seen, name, last)
        found.append(card(record, after=after))
    return (
        f'<p class="legend">{marks.LEGEND}</p><div class="arms" aria-busy="false" data-seen="{marks.payload(seen)}">'
        f"{''.join(found)}</div>"
    )


def waiting(arms: Sequence[str]) -> str:
    """Empty cards, which Generate fills."""
    html = "".join(
        f'<section class="arm" style="--arm:{COLOURS[name]}" aria-label="The arm {escape(name)}"><div class="top">'
        f'<h3>{escape(name)}</h3></div><p class="what">{escape(KINDS[name].says)}</p><p class="text empty">'
        "Press Generate (Ctrl+Enter).</p></section>"
        for name in arms
    )
    return f'<div class="arms">{html}</div>'


def markdown(question: str, records: Sequence[dict[str, Any]], settings: dict[str, Any] | None = None) -> str:
    """The answers as a Markdown table, with the settings that made them."""
    lines = ["| arm | model | answer | correct | tokens | tok/s | first token (ms) | model bytes |"]
    lines.append("|---|---|---|---|---:|---:|---:|---:|")
    for r in records:
        answer = (r["error"] or r["text"]).replace("|", "\\|").replace("\n", "<br>")
        right = {True: "yes", False: f"no ({r['how'] or r['known']})", None: ""}[r["correct"]]
        rate = f"{r['rate']:.0f}" if r["rate"] else ""
        first = f"{1000 * r['first']:.0f}" if r["first"] is not None else ""
        cells = (r["arm"], r["model"], answer, right, r["tokens"], rate, first, r["bytes"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    told = "".join(f"- {name}: {value}\n" for name, value in (settings or {}).items())
    return f"**{question}**\n\n" + "\n".join(lines) + "\n" + (f"\n{told}" if told else "")
