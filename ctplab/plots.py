"""Tables in, figures out: nothing is computed here. One colour an arm, everywhere; colour-blind safe."""

from itertools import pairwise
from pathlib import Path
from typing import Any

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def plain_log(axis: Any) -> None:
    """A log axis with ordinary numbers, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 1.5, 2, 3, 4, 6, 8), numticks=50))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def levels(levels: dict[str, dict], full: dict[str, Any], corpus: str, path: Path) -> None:
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
    figure.savefig(path)


def curve(records: list[dict], path: Path) -> None:
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
    figure.savefig(path)


def recovery(table: dict[str, dict[str, dict]], learned_on: str, path: Path) -> None:
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
    low = min(-0.5, *(row["value"] for arms_ in table.values() for row in arms_.values() if row["value"] > -1.5), -0.5)
    axes.set_ylim(max(low * 1.2, -2), 1.6)
    labels = [f"{corpus}\n(learned here)" if corpus == learned_on else corpus for corpus in table]
    axes.set_xticks(range(len(table)), labels)
    axes.set(ylabel="share of the NLL gap closed (1 = full)", title="Recovery and its controls, 95% intervals")
    axes.legend(frameon=False, ncols=4, fontsize=8)
    figure.savefig(path)


def answers(questions: dict[str, dict], path: Path) -> None:
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
    figure.savefig(path)


def histogram(data: dict, path: Path) -> None:
    """Cosine of rows to their nearest tokens, against the nulls (Figure 8)."""
    figure, axes = new_axes()
    edges = data["edges"]
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    colours = {"soft": COLOURS["soft"], "init": COLOURS["init"], "real": "#000000", "random": COLOURS["random"]}
    names = {"soft": "learned rows", "init": "untrained rows", "real": "real tokens", "random": "random Gaussian"}
    for name, counts in data["counts"].items():
        axes.step(centres, counts, where="mid", color=colours[name], label=names[name])
    axes.set(xlabel="cosine similarity", ylabel="count", title="Nearest tokens: the prompt against its nulls")
    axes.legend(frameon=False)
    figure.savefig(path)
