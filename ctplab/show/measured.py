"""Paper-like figures of measurements: recovery, transfer, latency, accuracy against bytes, the map of rows. Data in,
file out; nothing is computed here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctplab.measure.latency import LatencyPoint
from ctplab.measure.recovery import Recovery
from ctplab.measure.transfer import TransferCell
from ctplab.show.plots import COLOURS, new_axes, new_panels

ATTACHED = {"none": "#000000", "concatenated": "#D55E00", "compiled": "#0072B2"}
GREY = "#888888"


def recovery_bars(found: Recovery, corpus: str, path: Path) -> None:
    """Share of the gap closed by every arm, with 95% intervals; the dashed line is the full model."""
    figure, axes = new_axes(7, 0.4 * len(found) + 1.4)
    axes.grid(axis="x", alpha=0.3)
    axes.grid(axis="y", visible=False)
    arms = [name for name in found if name not in ("full", "compressed")]
    for y, name in enumerate(reversed(arms)):
        share = found[name].recovery
        error = [[share.value - share.low], [share.high - share.value]]
        axes.barh(y, share.value, color=COLOURS.get(name, GREY), xerr=error, capsize=3)
    axes.axvline(0, color="black", lw=0.8)
    axes.axvline(1, color="black", lw=0.8, ls="--")
    axes.set_yticks(range(len(arms)), [f"{name} ({found[name].ppl:.2f})" for name in reversed(arms)])
    axes.set(
        xlabel=f"share of the NLL gap closed on {corpus} (0 = compressed, 1 = full)",
        title=f"Recovery and its controls (perplexity; full {found['full'].ppl:.2f}, "
        f"compressed {found['compressed'].ppl:.2f})",
    )
    axes.title.set_fontsize(10)
    figure.savefig(path)


def transfer_matrix(cells: Sequence[TransferCell], path: Path) -> None:
    """Heat maps, one a corpus: change of NLL a token by prompt and target; framed where it was learned (Figure 4)."""
    corpora = list(dict.fromkeys(cell.corpus for cell in cells))
    targets = len({cell.target for cell in cells})
    sources = len({cell.source for cell in cells})
    figure, panels = new_panels(1, len(corpora), 1.6 + 0.7 * targets, 1.5 + 0.5 * sources)
    most = max([abs(cell.change.value) for cell in cells if cell.change], default=0) or 1
    largest = min(most, 1)  # beyond one nat a token all is equally lost, or won
    for corpus, axes in zip(corpora, panels[0], strict=True):
        image = _matrix(axes, [cell for cell in cells if cell.corpus == corpus], largest)
    panels[0][0].set_ylabel("prompt learned on")
    figure.colorbar(
        image, ax=panels[0].tolist(), label="change, nats a token (below 0: helps)", aspect=30,
        extend="both" if most > largest else "neither",
    )  # fmt: skip
    figure.savefig(path)


def _matrix(axes: Any, cells: Sequence[TransferCell], largest: float) -> Any:
    """One corpus; the first line is every target alone."""
    axes.grid(visible=False)
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = [source for source in dict.fromkeys(cell.source for cell in cells) if source != "none"]
    at = {(cell.source, cell.target): cell for cell in cells}
    lines = ["none", *sources]
    changes = [[_change(at[source, target]) for target in targets] for source in lines]
    image = axes.imshow(changes, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    for y, source in enumerate(lines):
        for x, target in enumerate(targets):
            cell = at[source, target]
            text = "refused" if cell.ppl is None else f"{cell.ppl:.2f}"
            text += f"\n{cell.change.value:+.3f}" if cell.change else ""
            dark = abs(_change(cell)) > 0.6 * largest
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            if cell.diagonal:
                axes.add_patch(_frame(x, y))
    axes.axhline(0.5, color="black", lw=0.8)
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(lines)), ["no prompt", *sources])
    axes.set(xlabel="target", title=f"Perplexity on {cells[0].corpus}; framed: home")
    axes.title.set_fontsize(10)
    return image


def _change(cell: TransferCell) -> float:
    return cell.change.value if cell.change else float("nan")


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, lw=2.5, color="black")


def latency(points: Sequence[LatencyPoint], path: Path) -> None:
    """Time to the first token against k; medians with quartiles, one line a way of attaching (Figure 5)."""
    figure, axes = new_axes()
    styles = ["-", "--", ":", "-."]
    arms = list(dict.fromkeys(point.arm for point in points))
    for arm in arms:
        for attached in ("concatenated", "compiled"):
            line = [p for p in points if p.arm == arm and p.attached in ("none", attached)]
            middle = [p.first_token_ms.median for p in line]
            error = [
                [p.first_token_ms.median - p.first_token_ms.low for p in line],
                [p.first_token_ms.high - p.first_token_ms.median for p in line],
            ]
            style = styles[arms.index(arm) % len(styles)]
            label = f"{attached}, {arm}" if len(arms) > 1 else attached
            axes.errorbar(
                [p.k for p in line], middle, yerr=error, color=ATTACHED[attached], ls=style, marker="o", ms=4,
                capsize=3, label=label,
            )  # fmt: skip
    first = points[0]
    axes.set(
        xlabel="prompt tokens k",
        ylabel="time to the first token, ms",
        title=f"Latency, batch {first.batch}, {first.length} text tokens (median, quartiles)",
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    figure.savefig(path)


def pareto(points: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Accuracy against true bytes: ``points`` are {"name", "arm", "bytes", "value", "low", "high"}."""
    figure, axes = new_axes()
    for arm in dict.fromkeys(point["arm"] for point in points):
        mine = [point for point in points if point["arm"] == arm]
        values = [100 * p["value"] for p in mine]
        error = [[100 * (p["value"] - p["low"]) for p in mine], [100 * (p["high"] - p["value"]) for p in mine]]
        x = [p["bytes"] / 1e6 for p in mine]
        axes.errorbar(x, values, yerr=error, fmt="o", ms=5, capsize=2, color=COLOURS.get(arm, GREY), label=arm)
        for point, at, value in zip(mine, x, values, strict=True):
            axes.annotate(point["name"], (at, value), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(
        xscale="log", xlabel="model on disk, MB (true bytes, log)", ylabel=f"{metric}, %", title="What a byte buys"
    )
    axes.legend(frameon=False)
    figure.savefig(path)


def row_map(found: dict[str, Any], path: Path) -> None:
    """Vocabulary, untrained and learned rows on two principal axes, with the way each row went."""
    figure, axes = new_axes(6.4, 5.2)
    axes.scatter(found["vocabulary"]["x"], found["vocabulary"]["y"], s=4, color="#CCCCCC", label="vocabulary")
    start, end = found["init"], found["learned"]
    for x0, y0, x1, y1 in zip(start["x"], start["y"], end["x"], end["y"], strict=True):
        axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "#BBBBBB", "lw": 0.5})
    axes.scatter(start["x"], start["y"], s=14, marker="s", color=COLOURS["init"], label="untrained rows")
    axes.scatter(end["x"], end["y"], s=18, color=COLOURS["soft"], label="learned rows")
    x, y = (100 * share for share in found["explained"])
    axes.set(xlabel=f"first axis ({x:.0f}% of variance)", ylabel=f"second axis ({y:.0f}%)", title="Where the rows went")
    axes.legend(frameon=False)
    figure.savefig(path)
