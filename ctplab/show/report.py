"""The demo's tables, its figures, and its report as Markdown. Formats numbers; computes none."""

from typing import Any

from ctplab.inspect.nearest import RowReport
from ctplab.measure.stats import Interval
from ctplab.prompts.arms import USUAL
from ctplab.show.compression import draw_levels
from ctplab.show.learning import draw_curve
from ctplab.show.nearness import draw_nearness
from ctplab.show.shares import draw_questions, draw_recovery
from ctplab.show.tables import fidelity_table, flips_table, share, table

NEXT = """
Next:
  ctplab compare --full atlas --compressed {model} --prompt {prompt} "Q: Where is Tulsa?\\nA:"
  ctplab score {model} --prompt {prompt} --corpus atlas-web,docs
  ctplab compress MODEL --bits 4 --sparsity 0.5 --calibration file:YOUR.txt --out DIR
  ctplab learn DIR --corpus file:YOUR.txt --teacher MODEL --out PROMPT"""


def levels_table(levels: dict[str, dict], corpora: tuple[str, ...]) -> str:
    """Perplexity, true bytes and bits a weight of every level."""
    rows = []
    for tag, level in levels.items():
        nominal = level.get("nominal_bits_per_weight", level["bits_per_weight"])
        rows.append(
            [tag, f"{level['bytes'] / 1e6:.2f}", f"{level['bits_per_weight']:.2f}", f"{nominal:g}"]
            + [f"{level['ppl'][c]:.2f}" for c in corpora]
        )
    return table(["level", "MB", "bits/weight", "nominal", *corpora], rows)


def answers_table(side_by_side: list[dict[str, Any]]) -> str:
    """Ten questions, four arms, right and wrong marked."""
    arms = list(side_by_side[0]["arms"])
    rows = []
    for item in side_by_side:
        cells = [f"{'+' if a['right'] else '-'} {a['text'][:22]}" for a in item["arms"].values()]
        rows.append([item["question"][:58], *cells])
    return table(["question  (+ right, - wrong)", *arms], rows)


def questions_table(exact: dict[str, dict]) -> str:
    """Exact match with 95% intervals."""
    rows = [[arm, *(share(_right(part)) for part in (row, row["seen"], row["held_out"]))] for arm, row in exact.items()]
    n = next(iter(exact.values()))["n"]
    return table([f"exact match, % of {n}", "all [95%]", "seen form", "held-out form"], rows)


def recovery_table(perplexity: dict[str, dict], shares: dict[str, dict], learned_on: str) -> str:
    """Recovery (1 = full model) and perplexity by arm and corpus."""
    rows = []
    for arm in next(iter(perplexity.values())):
        cells = []
        for corpus in perplexity:
            closed = shares[corpus].get(arm)
            text = f"ppl {perplexity[corpus][arm]:.2f}"
            cells.append(text if closed is None else f"{text}  {Interval(**closed).percent}")
        rows.append([arm, *cells])
    names = [f"{corpus} (learned here)" if corpus == learned_on else corpus for corpus in perplexity]
    return table(["arm", *names], rows)


def transfer_table(transfer: dict[str, dict], corpora: tuple[str, ...], source: str) -> str:
    """Perplexity without -> with the prompt; the level it was learned on is marked."""
    rows = []
    for tag, row in transfer.items():
        cells = [f"{row[c]['compressed']:.2f} -> {row[c]['soft']:.2f}" for c in corpora]
        rows.append([f"{tag} *" if tag == source else tag, *cells])
    return table(["target (* source)", *corpora], rows)


def nearest_table(rows: list[RowReport], histogram: dict[str, Any], metric: str = "cosine") -> str:
    """Nearest tokens of some rows, and mean cosines against the nulls."""
    cells = [
        [
            str(r.row),
            "-" if r.init is None else repr(r.init),
            "-" if r.init_rank is None else str(r.init_rank),
            f"{r.drift:.2f}",
            "  ".join(f"{token!r} {value:.2f}" for token, value in r.nearest[:3]),
        ]
        for r in rows
    ]
    means = ", ".join(f"{name} {value:.3f}" for name, value in histogram["mean"].items())
    return (
        table(["row", "started as", "its rank now", "drift", f"nearest ({metric})"], cells)
        + f"\nmean cosine to the 100 nearest tokens: {means}"
    )


def plain_words(result: dict[str, Any]) -> str:
    """What the numbers say, without adjectives."""
    q, on = result["questions"], result["learned_on"]
    soft, adapted = result["recovery"][on]["soft"], result["recovery"][on]["full+soft"]
    lines = [
        "- Questions: " + ", ".join(f"{arm} {q[arm]['exact_match']:.1%}" for arm in USUAL) + ".",
        f"- On {on}, where it was learned, the prompt closes {Interval(**soft).percent} of the NLL gap.",
    ]
    for corpus, row in result["recovery"].items():
        if corpus != on:
            closed = row["soft"]["value"]
            does = f"closes {closed:.0%} of the gap" if closed > 0 else f"widens the gap by {-closed:.0%}"
            lines.append(f"- On {corpus}, where it was not learned, it {does}.")
    if adapted["low"] > 1:
        verdict = "it gains from it too, so that much is adaptation to the corpus, not recovery"
    else:
        verdict = "it gains nothing from it, so what the compressed model gains is recovery, not adaptation"
    reached = f"{Interval(**adapted).percent} of the gap"
    lines.append(f"- Control: the full model with this prompt is at {reached} on {on}: {verdict}.")
    return "\n".join(lines)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The report's figures by name, from ``demo.json``."""
    levels = {tag: level for tag, level in result["levels"].items() if tag != "full"}
    recovered = {c: {arm: Interval(**found) for arm, found in arms.items()} for c, arms in result["recovery"].items()}
    seen, held_out = (
        {arm: _right(row[form]) for arm, row in result["questions"].items()} for form in ("seen", "held_out")
    )
    return {
        "levels": draw_levels(levels, result["levels"]["full"], result["learned_on"]),
        "curve": draw_curve(result["prompt"]["curve"]),
        "recovery": draw_recovery(recovered, result["learned_on"]),
        "questions": draw_questions(seen, held_out),
        "cosines": draw_nearness(result["histogram"], ceiling=True),
    }


def _right(part: dict[str, Any]) -> Interval:
    """Share of right answers, from JSON."""
    return Interval(part["exact_match"], part["low"], part["high"])


def _faithful(result: dict[str, Any], on: str) -> list[str]:
    """How close the arms' answers are to the full model's; nothing if an older run did not measure it."""
    near = result.get("fidelity", {})
    if not near:
        return []
    parts = ["## Fidelity to the full model\n"]
    for corpus, found in near.items():
        parts += [f"On {corpus}{', where the prompt was learned' if corpus == on else ''}:", fidelity_table(found)]
    return [*parts, "On the questions, against the full model's answers:", flips_table(result["flips"])]


def markdown(result: dict[str, Any], corpora: tuple[str, ...]) -> str:
    """``report.md``."""
    rows = [RowReport(**row) for row in result["nearest"]]
    tag, on = result["showcase"], result["learned_on"]
    parts = [
        "# ctplab demo",
        plain_words(result),
        "## What compression costs\n\n![levels](levels.png)",
        levels_table(result["levels"], corpora),
        f"## Learning a soft prompt at {tag} on {on}\n\n![curve](curve.png)",
        "## Ten questions\n",
        answers_table(result["answers"]),
        "## All questions\n\n![questions](questions.png)",
        questions_table(result["questions"]),
        "## Recovery and its controls\n\n![recovery](recovery.png)",
        recovery_table(result["perplexity"], result["recovery"], on),
        *_faithful(result, on),
        "## Transfer to other levels\n",
        transfer_table(result["transfer"], corpora, tag),
        "## What the prompt looks like\n\n![cosines](cosines.png)",
        nearest_table(rows, result["histogram"]),
        f"seed {result['seed']}, torch {result['torch']}, {result['seconds']} s; {result['deterministic']}.",
    ]
    return "\n\n".join(parts) + "\n"
