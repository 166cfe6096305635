"""Tables in, figures out: nothing is computed here. One colour an arm, everywhere; colour-blind safe."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from ctplab.inspect.similarity import PAPER_LARGEST

COLOURS = {
    "full": "#0072B2",
    "compressed": "#D55E00",
    "hard": "#E69F00",
    "soft": "#009E73",
    "full+soft": "#6A5ACD",
    "bos": "#56B4E9",
    "random": "#999999",
    "init": "#CC79A7",
    "text": "#F0E442",
    "nearest": "#882255",
    "lora": "#332288",
    "full+own": "#44AA99",
}


def new_axes(width: float = 6.4, height: float = 4.0) -> tuple[Any, Any]:
    """A figure and its axes, without any global state."""
    figure, panels = new_panels(1, 1, width, height)
    return figure, panels[0][0]


def new_panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its (rows, columns) axes, each of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure, panels


def plain_log(axis: Any) -> None:
    """A log axis with ordinary numbers, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high <= 30 * low else (1, 2, 5) if high <= 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=50))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _kept(figure: Any, path: Path | None) -> Any:
    """The figure itself (a notebook shows it), saved where ``path`` says."""
    if path is not None:
        figure.savefig(path)
    return figure


def levels(levels: dict[str, dict], full: dict[str, Any], corpus: str, path: Path | None = None) -> Any:
    """Perplexity against the model's true bytes, one point a compression level (log y)."""
    figure, axes = new_axes()
    axes.axhline(full["ppl"][corpus], color=COLOURS["full"], ls="--", lw=1, label=f"full, {full['bytes'] / 1e6:.1f} MB")
    kinds = {"quantised": "o", "pruned": "s", "joint": "D"}
    for tag, level in levels.items():
        kind = "joint" if "w" in tag and "s" in tag else "quantised" if tag.startswith("w") else "pruned"
        label = kind if kind in kinds else None
        x, y = level["bytes"] / 1e6, level["ppl"][corpus]
        axes.scatter(x, y, marker={"quantised": "o", "pruned": "s", "joint": "D"}[kind], color="#D55E00", label=label)
        kinds.pop(kind, None)
        below = -9 if kind == "quantised" else 2  # 3 bits and 50% + 4 bits lie close together
        axes.annotate(tag, (x, y), textcoords="offset points", xytext=(7, below), fontsize=9)
    axes.set(yscale="log", xlabel="model on disk, MB (true bytes)", ylabel=f"perplexity on {corpus} (log)")
    plain_log(axes.yaxis)
    axes.margins(x=0.1, y=0.12)
    axes.set_title("What compression costs")
    axes.legend(frameon=False)
    return _kept(figure, path)


def curve(records: list[dict], path: Path | None = None) -> Any:
    """Training loss and validation NLL against the step."""
    figure, axes = new_axes()
    axes.plot([r["step"] + 1 for r in records], [r["loss"] for r in records], color="#BBBBBB", lw=0.8, label="training")
    measured = [r for r in records if r["validation"] is not None]
    axes2 = axes.twinx()
    axes2.spines[["top"]].set_visible(False)
    steps, values = [r["step"] + 1 for r in measured], [r["validation"] for r in measured]
    axes2.plot(steps, values, color=COLOURS["soft"], marker="o", ms=3, label="validation NLL")
    axes.set(xlabel="step", ylabel="training objective (nats a token)", title="Learning the soft prompt")
    axes2.set_ylabel("validation NLL (nats a token)", color=COLOURS["soft"])
    return _kept(figure, path)


def recovery(table: dict[str, dict[str, dict]], learned_on: str, path: Path | None = None) -> Any:
    """Share of the NLL gap closed, by corpus and arm, with 95% intervals."""
    figure, axes = new_axes(8.4, 4.2)
    arms = list(next(iter(table.values())))
    width = 0.8 / len(arms)
    for j, arm in enumerate(arms):
        rows = [table[corpus][arm] for corpus in table]
        values = [row["value"] for row in rows]
        errors = [
            [max(0, r["value"] - r["low"]) for r in rows],
            [max(0, r["high"] - r["value"]) for r in rows],
        ]
        x = [i + (j - (len(arms) - 1) / 2) * width for i in range(len(rows))]
        axes.bar(x, values, width, yerr=errors, capsize=2, color=COLOURS.get(arm, "#888888"), label=arm)
    axes.axhline(0, color="black", lw=0.8)
    axes.axhline(1, color="black", lw=0.8, ls="--")
    ends = [row["low"] for arms_ in table.values() for row in arms_.values()]
    axes.set_ylim(max(-2, min(-0.6, *ends) - 0.1), 1.6)  # below -2 a bar is cut: how much worse tells no more
    labels = [f"{corpus}\n(learned here)" if corpus == learned_on else corpus for corpus in table]
    axes.set_xticks(range(len(table)), labels)
    axes.set(ylabel="share of the NLL gap closed (1 = full)", title="Recovery and its controls, 95% intervals")
    axes.legend(frameon=False, ncols=4, fontsize=8)
    return _kept(figure, path)


def answers(questions: dict[str, dict], path: Path | None = None) -> Any:
    """Exact match by arm, seen and held-out questions apart."""
    figure, axes = new_axes()
    for i, (arm, row) in enumerate(questions.items()):
        for offset, kind, alpha in ((-0.2, "seen", 1.0), (0.2, "held_out", 0.55)):
            part = row[kind]
            error = [
                [100 * max(0, part["exact_match"] - part["low"])],
                [100 * max(0, part["high"] - part["exact_match"])],
            ]
            colour = COLOURS.get(arm, "#888888")
            axes.bar(i + offset, 100 * part["exact_match"], 0.38, color=colour, alpha=alpha, yerr=error, capsize=2)
    axes.set_xticks(range(len(questions)), list(questions), rotation=20)
    axes.set(ylabel="exact match, %", ylim=(0, 105), title="Questions: seen form (solid), held-out form (pale)")
    return _kept(figure, path)


def histogram(data: dict, path: Path | None = None) -> Any:
    """Cosine of rows to their nearest tokens, against the nulls (Figure 8)."""
    figure, axes = new_axes()
    edges = data["edges"]
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    colours = {"soft": COLOURS["soft"], "init": COLOURS["init"], "real": "#000000", "random": COLOURS["random"]}
    names = {"soft": "learned rows", "init": "untrained rows", "real": "real tokens", "random": "random Gaussian"}
    for name, counts in data["counts"].items():
        axes.step(centres, counts, where="mid", color=colours[name], label=names[name])
    axes.axvline(PAPER_LARGEST, color="black", lw=0.8, ls=":", label="the paper's ceiling")
    seen = [i for i in range(len(centres)) if any(counts[i] for counts in data["counts"].values())] or [0]
    axes.set_xlim(edges[max(0, seen[0] - 1)], edges[seen[-1] + 1])
    axes.set(xlabel="cosine similarity", ylabel="count", title="Nearest tokens: the prompt against its nulls")
    axes.legend(frameon=False)
    return _kept(figure, path)


def images(matrices: dict[str, Any], path: Path | None = None) -> Any:
    """Matrices side by side, each on its own scale around zero (weights, codes, errors)."""
    figure, first = new_axes(3.2 * len(matrices), 3.2)
    figure.delaxes(first)
    for axes, (name, matrix) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices.items(), strict=True):
        most = float(abs(matrix).max())
        axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
        axes.set(title=name, xticks=[], yticks=[], xlabel="inputs", ylabel="outputs")
    return _kept(figure, path)


def shares(found: dict[str, Any], title: str, path: Path | None = None) -> Any:
    """Intervals (value, low, high) by name, as points with whiskers."""
    figure, axes = new_axes()
    for i, (name, share) in enumerate(found.items()):
        error = [[max(0, share.value - share.low)], [max(0, share.high - share.value)]]
        axes.errorbar(i, share.value, error, fmt="o", capsize=3, color=COLOURS.get(name, COLOURS["soft"]))
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(found)), list(found), rotation=20)
    axes.set(title=title)
    return _kept(figure, path)


def heat(values: list[list[float]], rows: list[str], columns: list[str], title: str, path: Path | None = None) -> Any:
    """A table as colours around zero, blue below it, with its numbers written in."""
    figure, axes = new_axes(1.6 + 1.2 * len(columns), 1.4 + 0.5 * len(rows))
    most = max(abs(value) for row in values for value in row) or 1.0
    axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.grid(False)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if abs(value) > most / 2 else "black"
            axes.text(j, i, f"{value:+.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title)
    return _kept(figure, path)
