"""Figures of changes as coloured tables: green where a prompt helps, orange-red where it hurts. Data in, figure out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.measure.transfer import TransferCell
from ctplab.show.axes import new_axes, new_panels
from ctplab.show.colours import HELPS, HURTS

Grid = list[list[float]]

CLEAR = 1.0  # nats a token; beyond it all is equally lost, or won


def draw_heat(table: Mapping[str, Mapping[str, float]], title: str, *, higher_is_better: bool) -> Any:
    """Numbers around zero, a line for each first name and a column for each second: changes of NLL, recoveries."""
    rows, columns = list(table), list(next(iter(table.values())))
    figure, axes = new_axes(1.6 + 1.2 * len(columns), 1.4 + 0.5 * len(rows))
    values = [[table[row][column] for column in columns] for row in rows]
    most = max(abs(value) for row in values for value in row) or 1.0
    _coloured(axes, values, [[f"{value:+.2f}" for value in row] for row in values], most, higher_is_better)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title)
    return figure


def draw_transfer(cells: Sequence[TransferCell]) -> Any:
    """Perplexity and change of NLL by prompt and target, a panel a corpus; framed where it was learned (Figure 4)."""
    corpora = list(dict.fromkeys(cell.corpus for cell in cells))
    targets = len({cell.target for cell in cells})
    sources = len({cell.source for cell in cells})
    figure, panels = new_panels(1, len(corpora), max(3.9, 1.6 + 0.7 * targets), 1.5 + 0.5 * sources)  # titles fit
    most = max([abs(cell.change.value) for cell in cells if cell.change], default=0) or CLEAR
    largest = min(most, CLEAR)
    for corpus, axes in zip(corpora, panels[0], strict=True):
        image = _one_corpus(axes, [cell for cell in cells if cell.corpus == corpus], largest)
    panels[0][0].set_ylabel("prompt learned on")
    figure.colorbar(
        image, ax=panels[0].tolist(), label="change, nats a token (below 0: helps)", aspect=30,
        extend="both" if most > largest else "neither",
    )  # fmt: skip
    return figure


def _one_corpus(axes: Any, cells: Sequence[TransferCell], largest: float) -> Any:
    """A line a prompt and a column a target; the first line is every target alone."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = [source for source in dict.fromkeys(cell.source for cell in cells) if source != "none"]
    at = {(cell.source, cell.target): cell for cell in cells}
    grid = [[at[source, target] for target in targets] for source in ("none", *sources)]
    values = [[cell.change.value if cell.change else math.nan for cell in row] for row in grid]
    image = _coloured(axes, values, [[_written(cell) for cell in row] for row in grid], largest)
    for y, row in enumerate(grid):
        for x, cell in enumerate(row):
            if cell.diagonal:
                axes.add_patch(_frame(x, y))
    axes.axhline(0.5, color="black", lw=0.8)
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(grid)), ["no prompt", *sources])
    axes.set(xlabel="target", title=f"Perplexity on {cells[0].corpus}; framed: home")
    axes.title.set_fontsize(10)
    return image


def _coloured(axes: Any, values: Grid, texts: list[list[str]], largest: float, higher_is_better: bool = False) -> Any:
    """Cells coloured by value between -largest and largest, with their texts written in."""
    from matplotlib.colors import LinearSegmentedColormap

    low, high = (HURTS, HELPS) if higher_is_better else (HELPS, HURTS)
    colours = LinearSegmentedColormap.from_list("change", [low, "#FFFFFF", high])
    image = axes.imshow(values, cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
    axes.grid(visible=False)
    for y, row in enumerate(texts):
        for x, text in enumerate(row):  # black is the better ink on both colours, at full strength too
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="black")
    return image


def _written(cell: TransferCell) -> str:
    ppl = "refused" if cell.ppl is None else f"{cell.ppl:.2f}"
    return f"{ppl}\n{cell.change.value:+.3f}" if cell.change else ppl


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, lw=2.5, color="black")
