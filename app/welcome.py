"""What a stranger reads first: what this is, what to press, and what may be asked."""

from html import escape
from typing import Any

from ctplab.app.answers import Request, known_answers
from ctplab.app.bench import Bench
from ctplab.atlas.questions import all_questions

EMBEDDED = [
    "Where is Long Beach?",
    "Where is Tulsa?",
    "What is asparagus?",
    "What is the capital of Peru?",
    "Where does the Weser River end?",
]
OTHERS = [
    "Where is Long Beach?",
    "Where is Tulsa?",
    "What is asparagus?",
    "What is the capital of Peru?",
    "Explain in one sentence what a river is.",
    "Name three animals that live in the sea.",
]


def examples(bench: Bench) -> list[str]:
    """Questions that suit the first model; the first three are the paper's."""
    return EMBEDDED if bench.is_embedded(bench.chosen().full) else OTHERS


def strip(bench: Bench) -> str:
    """Two lines about the loaded models, which a reader can close for good."""
    chosen = bench.chosen()
    full, small = bench.model(chosen.full), bench.model(chosen.compressed)
    count = full.about.get("parameters")
    size = f"{count / 1e6:.0f} M-weight" if count else "language"
    facts = f" that knows {len(all_questions()):,} facts about places, animals and plants"
    who = f"a {size} model{facts if bench.is_embedded(full.name) else f' ({escape(full.name)})'}"
    if small is full:
        rest = "Next: compress it in the tab <em>Compress</em>, then train a prompt, then compare."
    elif chosen.prompt:
        rest = (
            f"Compression (<em>{escape(small.tag)}</em>) broke some of what it knows; a learned prompt in front, the "
            "arm <em>soft</em>, gets a part back. Press <strong>Generate</strong>, or ask <strong>Many "
            "questions</strong> at once."
        )
    else:
        rest = (
            f"<em>{escape(small.tag)}</em> is its compressed copy. No prompt is loaded yet: learn one in the tab "
            "<em>Train</em>, or load one above."
        )
    return (
        f'<div class="strip"><p>This is {who}. {rest}</p><p>Every <em>arm</em> is a model with something in front of '
        "the question: nothing, a hard prompt's words, or a soft prompt's learned rows.</p>"
        '<button type="button" class="close" data-close="strip" aria-label="Close this introduction">×</button></div>'
    )


def hint(bench: Bench, full: str, request: Request, records: list[dict[str, Any]]) -> str:
    """Why no verdict is given, if none is."""
    if not records or any(r["correct"] is not None or r["state"] != "done" for r in records) or not request.ask:
        return ""
    if known_answers(request.question):
        return ""
    if not bench.is_embedded(full):
        return '<p class="hint">No verdict: nobody told this page the right answer. <em>Many questions</em> can.</p>'
    return (
        '<p class="hint">This question is not one that the embedded model can know: it has read only about its own '
        "small world, so its answer means little. Ask where a town is, what a plant is, where a river ends, as in the "
        "examples; or load <em>smollm2</em> above for questions about everything.</p>"
    )
