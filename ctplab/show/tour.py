"""The tour's tables, its figures, and its report as Markdown. Formats numbers; computes none."""

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from ctplab.inspect.nearest import RowReport
from ctplab.measure.stats import Interval
from ctplab.measure.transfer import TransferCell
from ctplab.show import report, tables
from ctplab.show.compression import draw_levels
from ctplab.show.learning import draw_curves
from ctplab.show.matrices import draw_transfer
from ctplab.show.nearness import draw_nearness
from ctplab.show.shares import draw_recovery, draw_shares

WIDTH = 92
"""Characters of an answer that are shown."""

MOST = 8
"""Points of a curve in a line of text."""

NEXT = """
Next:
  ctplab compare --full {name} --compressed {model} --prompt {prompt} "What is asparagus?"
  ctplab score {model} --prompt {prompt} --corpus docs
  ctplab learn {model} --init-prompt {prompt} --corpus file:YOUR.txt --seq-len 256 --batch 4 --steps 300 --out PROMPT
  ctplab compress {name} --bits 3 --calibration file:YOUR.txt --out DIR"""


def curve_line(curve: list[dict[str, Any]]) -> str:
    """``10: 5.904  20: 5.700``: validation NLL by step, the last one and about :data:`MOST` before it."""
    found = [(s["step"] + 1, s["validation"]) for s in curve if s["validation"] is not None]
    chosen = found[:: -max(1, len(found) // MOST)][::-1]
    return "  ".join(f"{step}: {nll:.3f}" for step, nll in chosen)


def answers_text(side_by_side: list[dict[str, Any]]) -> str:
    """Every question, and below it a line an arm; + marks a right answer, - a wrong one."""
    lines = []
    for item in side_by_side:
        lines.append(f"{item['question']}  ({' or '.join(item['accepted'])})")
        for arm, answer in item["arms"].items():
            text = shorten(answer["text"], WIDTH, placeholder=" ...")
            lines.append(f"{arm:>14} {'+' if answer['right'] else '-'} {text}")
    return "\n".join(lines)


def right_table(questions: Mapping[str, dict[str, Any]]) -> str:
    """How many of the questions each arm gets right."""
    rows = [[arm, f"{round(row['exact_match'] * row['n'])}", f"{_share(row)}"] for arm, row in questions.items()]
    return tables.table(["arm", f"right of {next(iter(questions.values()))['n']}", "% [95%]"], rows)


def _share(row: dict[str, Any]) -> str:
    return tables.share(Interval(row["exact_match"], row["low"], row["high"]))


def long_run_table(found: dict[str, Any]) -> str:
    """Level x corpus: perplexities, and the shares of the gap that each objective's prompt closes."""
    by_level: dict[str, dict[str, Any]] = {}
    for run in found["runs"]:
        by_level.setdefault(run["level"], {})[run["objective"]] = run["corpora"]
    rows = []
    for level, runs in by_level.items():
        for corpus, arms in runs["nll"].items():
            name = f"{corpus} (learned here)" if corpus == found["learned_on"] else corpus
            row = [level, name, *(f"{arms[arm]['ppl']:.1f}" for arm in ("full", "compressed"))]
            for objective in ("nll", "kl"):
                soft = runs[objective][corpus]["soft"] if objective in runs else None
                row += ["-", "-"] if soft is None else [f"{soft['ppl']:.1f}", f"{soft['value']:.0%}"]
            rows.append([*row, f"{arms['full+soft']['value']:.0%}"])
    header = ["level", "corpus", "full", "compressed", "soft (NLL)", "recovery", "soft (KL)", "recovery", "full+soft"]
    return tables.table(header, rows)


def transfer_tables(cells: list[TransferCell]) -> str:
    """A matrix a corpus."""
    parts = []
    for corpus in dict.fromkeys(cell.corpus for cell in cells):
        parts.append(f"{corpus}: perplexity, and the change in nats a token against no prompt [95%]")
        parts.append(tables.matrix_table([cell for cell in cells if cell.corpus == corpus]))
    return "\n".join(parts)


def transfer_words(cells: list[TransferCell]) -> str:
    """What comes of every prompt where it was not learned."""
    lines = []
    for cell in cells:
        if cell.change is not None and not cell.diagonal:
            does = (
                "helps" if cell.change.high < 0 else "does harm" if cell.change.low > 0 else "changes nothing for sure"
            )
            lines.append(
                f"- {cell.source} in front of {cell.target}, {cell.corpus}: {does} ({cell.change.value:+.2f})."
            )
    return "\n".join(lines)


def plain_words(result: dict[str, Any]) -> str:
    """What the numbers say, without adjectives."""
    lines = []
    for corpus, row in result["recovery"].items():
        where = "where it was learned" if corpus == result["learned_on"] else "text that it never saw"
        shares = {arm: Interval(**found).percent for arm, found in row.items()}
        lines.append(
            f"- {corpus}, {where}: the prompt learned here closes {shares['soft']} of the gap, the shipped one "
            f"untouched {shares['shipped']}, as many steps from nothing {shares['from-nothing']}. The full model "
            f"behind the first is at {shares['full+soft']}. As many steps on scales and norms, without a prompt, close "
            f"{shares['scales+norms']}."
        )
    on = result["learned_on"]
    near = {arm: f"{tables.share(Interval(**told['same_top']))}%" for arm, told in result["fidelity"][on].items()}
    lines.append(
        f"- The first choice is the full model's for {near['compressed']} of the tokens of {on} without a prompt, for "
        f"{near['soft']} behind the one learned here, and for {near['scales+norms']} with other scales and norms."
    )
    n = {arm: round(row["exact_match"] * row["n"]) for arm, row in result["questions"].items()}
    lines.append("- Questions answered rightly: " + ", ".join(f"{arm} {count}" for arm, count in n.items()) + ".")
    if n["soft"] <= n["compressed"]:
        lines.append("- So at this level the prompt wins back loss, but no answers.")
    return "\n".join(lines)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The report's figures by name, from ``demo.json``."""
    levels = {tag: level for tag, level in result["levels"].items() if tag != "full"}
    on = result["learned_on"]
    right = {arm: Interval(row["exact_match"], row["low"], row["high"]) for arm, row in result["questions"].items()}
    return {
        "levels": draw_levels(levels, result["levels"]["full"], on),
        "curve": draw_curves({"soft": result["prompt"]["curve"], "from-nothing": result["from_nothing"]["curve"]}),
        "recovery": draw_recovery(_intervals(result["recovery"]), on),
        "long-run": long_run_figure(result["long_run"]),
        "questions": draw_shares(right, "Share of the questions answered rightly, 95% intervals"),
        "transfer": draw_transfer([TransferCell.from_json(cell) for cell in result["cells"]]),
        "cosines": draw_nearness(result["histogram"], ceiling=True),
    }


def long_run_figure(found: dict[str, Any]) -> Any:
    """Recovery and its controls in the first of the long runs: 3 bits, learned on the next tokens."""
    first = found["runs"][0]
    shares = {
        c: {a: row for a, row in arms.items() if a not in ("full", "compressed")}
        for c, arms in first["corpora"].items()
    }
    return draw_recovery(_intervals(shares), found["learned_on"])


def _intervals(shares: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Interval]]:
    return {
        corpus: {arm: Interval(found["value"], found["low"], found["high"]) for arm, found in row.items()}
        for corpus, row in shares.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """``report.md``."""
    tag, on, cells = result["showcase"], result["learned_on"], [TransferCell.from_json(c) for c in result["cells"]]
    curve = result["prompt"]["curve"]
    parts = [
        "# ctplab demo: SmolLM2-135M-Instruct",
        *([result["note"].capitalize() + "."] if result["note"] else []),
        plain_words(result),
        "## What compression costs\n\n![levels](levels.png)",
        report.levels_table(result["levels"], tuple(result["corpora"])),
        f"## Learning through this {tag} copy on {on}: {len(curve)} steps\n\n![curve](curve.png)",
        "## Recovery and its controls\n\n![recovery](recovery.png)",
        report.recovery_table(result["perplexity"], result["recovery"], on),
        f"How close the answers stay to the full model's, on {on}:",
        report.fidelity_table(result["fidelity"][on]),
        f"## The long run\n\n{result['long_run']['about']}.\n\n![long run](long-run.png)",
        long_run_table(result["long_run"]),
        "## Questions, through the chat template\n\n![questions](questions.png)",
        right_table(result["questions"]),
        f"```text\n{answers_text(result['answers'])}\n```",
        "## Transfer to the other level\n\n![transfer](transfer.png)",
        transfer_tables(cells),
        transfer_words(cells),
        "## What the prompt looks like\n\n![cosines](cosines.png)",
        report.nearest_table([RowReport(**row) for row in result["nearest"]][:12], result["histogram"]),
        f"seed {result['seed']}, torch {result['torch']}, {result['seconds']} s ({result['cpu_seconds']} s of "
        f"processor time); {result['deterministic']}.",
    ]
    return "\n\n".join(parts) + "\n"
