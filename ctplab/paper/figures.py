"""The paper's tables and figures drawn from our rows: dots beside the printed numbers, lines over compression levels,
accuracies, answers. Data in, figure out; nothing is computed here.

The paper's own numbers are black and grey, so that no colour of an arm is taken for them.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from ctplab.measure.stats import Interval
from ctplab.show.axes import new_axes, new_panels, plain_log, whiskers
from ctplab.show.colours import GREY, colour

PRINTED = {"marker": "o", "facecolors": "none", "edgecolors": "#000000", "zorder": 3, "label": "paper, as printed"}
CORRECTED = {"marker": "o", "color": GREY, "label": "paper, as corrected"}
OURS = {"marker": "D", "color": "#000000", "label": "here"}
METHODS = {"none": ("compressed", "o", "compressed"), "soft": ("soft", "s", "with a prompt")}
"""The paper's word for it -> the arm, its marker and its label."""
BITS, SPARSITIES = ("4-bit", "3-bit", "2-bit"), ("50%", "62.5%", "75%")
PLACES = {level: i for i, level in enumerate(BITS)} | {level: 3.5 + i for i, level in enumerate(SPARSITIES)}
"""Where a level stands on the x axis: bits, a gap, sparsities."""

Rows = Sequence[dict[str, Any]]


def beside_the_paper(name: str, rows: Rows) -> Any:
    """A line a row, with the paper's number as printed and as corrected, and ours."""
    figure, axes = new_axes(7.2, 0.27 * len(rows) + 1.6)
    axes.grid(axis="x", alpha=0.3)
    marks = {"printed": PRINTED | {"s": 70}, "corrected": CORRECTED | {"s": 26}, "ours": OURS | {"s": 30}}
    for key, style in marks.items():
        found = [(i, row[key]) for i, row in enumerate(rows) if row[key] is not None]
        if found:
            axes.scatter([value for _, value in found], [i for i, _ in found], **style)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axes.margins(y=0.6 / len(rows))
    axes.invert_yaxis()
    theirs, ours = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("paper_model", "model"))
    title = f"{name}: {theirs}" if theirs == ours else f"{name}: the paper's {theirs}, and {ours} here"
    axes.set(xscale="log", xlabel="perplexity (log)", title=title)
    axes.title.set_fontsize(11)
    plain_log(axes.xaxis)
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def _label(row: dict[str, Any]) -> str:
    corpus = row["what"] if row["what"].lower() == row["corpus"] else f"{row['what']} ({row['corpus']})"
    model = f"{row['model']}  " if row["model"] == row["paper_model"] else ""
    return f"{model}{corpus}  {row['level']}  {row['method']}"


def by_level(name: str, rows: Rows) -> Any:
    """Perplexity against bits and sparsity, with and without a prompt: a row of panels a model, one a corpus."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    corpora = list(dict.fromkeys(row["corpus"] for row in rows))
    figure, panels = new_panels(len(models), len(corpora), 4.4, 3.2)
    for model, line in zip(models, panels, strict=True):
        for corpus, axes in zip(corpora, line, strict=True):
            _levels(axes, [row for row in rows if (row["model"], row["corpus"]) == (model, corpus)])
            axes.set_title(f"{model} on {corpus}", fontsize=10)
        line[0].set_ylabel("perplexity (log)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center", fontsize=9)
    figure.suptitle(f"{name}: perplexity against the compression level", fontsize=11)
    return figure


def _levels(axes: Any, rows: Rows) -> None:
    full = [row["ours"] for row in rows if row["level"] == "fp16"]
    if full:
        axes.axhline(full[0], color=colour("full"), ls="--", lw=1.2, label="full")
    for method, (arm, marker, label) in METHODS.items():
        for kind in (BITS, SPARSITIES):
            mine = sorted(
                (PLACES[row["level"]], row["ours"]) for row in rows if row["method"] == method and row["level"] in kind
            )
            if mine:
                axes.plot(*zip(*mine, strict=True), color=colour(arm), marker=marker, ms=5, label=label)
                label = None  # one entry in the legend for both lines
    printed = [row for row in rows if row["printed"] is not None and row["model"] == row["paper_model"]]
    if printed:  # another model's numbers would not belong on this axis
        axes.scatter([PLACES[r["level"]] for r in printed], [r["printed"] for r in printed], s=45, **PRINTED)
    axes.set_xticks(list(PLACES.values()), list(PLACES), fontsize=9)
    axes.set_yscale("log")
    plain_log(axes.yaxis)


def accuracies(name: str, rows: Rows) -> Any:
    """Share of right answers against bits and sparsity, with and without a prompt, 95% intervals: a panel a task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = new_panels(1, len(tasks), 4.6, 3.4)
    for task, axes in zip(tasks, panels[0], strict=True):
        mine = [row for row in rows if row["task"] == task]
        full = next(row for row in mine if row["level"] == "full")["ours"]
        axes.axhspan(100 * full["low"], 100 * full["high"], color=colour("full"), alpha=0.12, lw=0)
        axes.axhline(100 * full["value"], color=colour("full"), ls="--", lw=1.2, label="full")
        for offset, (method, (arm, marker, label)) in zip((-0.12, 0.12), METHODS.items(), strict=True):
            found = [row for row in mine if row["method"] == method and row["level"] != "full"]
            x = [PLACES[row["level"]] + offset for row in found]
            shares = [Interval(**row["ours"]) for row in found]
            axes.errorbar(
                x, [100 * share.value for share in shares], whiskers(shares, 100), fmt=marker, ms=5, capsize=3,
                color=colour(arm), label=label,
            )  # fmt: skip
            printed = [(at, 100 * row["printed"]) for at, row in zip(x, found, strict=True) if row["printed"]]
            if printed:
                style = PRINTED | {"label": PRINTED["label"] if offset < 0 else None}
                axes.scatter(*zip(*printed, strict=True), s=45, **style)
        axes.set_xticks(list(PLACES.values()), list(PLACES), fontsize=9)
        axes.set_title(f"{task} ({mine[0]['metric']})", fontsize=10)
    panels[0][0].set_ylabel("right answers, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center", fontsize=9)
    figure.suptitle(f"{name}: accuracy, 95% intervals", fontsize=11)
    return figure


def answers(name: str, rows: Rows, width: int = 30) -> Any:
    """What every arm answers: a block a level, a column an arm, a line a question."""
    levels, names, asked = (list(dict.fromkeys(row[key] for row in rows)) for key in ("level", "arm", "question"))
    text = {
        (row["level"], row["arm"], row["question"]): textwrap.fill(_printable(row["answer"]), width) or "-"
        for row in rows
    }
    heights = {
        (level, question): 0.8 + max(text[level, arm, question].count("\n") + 1 for arm in names)
        for level in levels
        for question in asked
    }
    lines = sum(heights.values()) + 1.6 * len(levels)
    figure, axes = new_axes(1.9 + 2.1 * len(names), 0.5 + 0.14 * lines)
    axes.set_axis_off()
    axes.set(xlim=(-0.85, len(names)), ylim=(lines, -0.4))
    y = 0.0
    for level in levels:
        axes.text(-0.85, y, level, weight="bold", va="top", fontsize=9)
        for x, arm in enumerate(names):
            axes.text(x, y, arm, weight="bold", va="top", fontsize=9, color=colour(arm))
        y += 1.6
        for question in asked:
            axes.axhline(y - 0.3, color="#DDDDDD", lw=0.8)
            axes.text(-0.85, y, textwrap.fill(question, 24), va="top", fontsize=8)
            for x, arm in enumerate(names):
                axes.text(x, y, text[level, arm, question], va="top", fontsize=8, parse_math=False)
            y += heights[level, question]
    axes.set_title(f"{name}: the same questions to every arm", fontsize=11)
    return figure


def _printable(text: str) -> str:
    """What a broken model writes may be control characters, for which fonts have nothing."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
