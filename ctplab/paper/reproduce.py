"""Reproduce one table or figure of the paper by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctplab.paper.accuracies import table_8
from ctplab.paper.bench import Bench
from ctplab.paper.others import figure_1, figure_5, figure_8
from ctplab.paper.perplexities import measure
from ctplab.paper.recipes import PERPLEXITIES, Scale
from ctplab.progress import Progress, bar


def reproduce(
    name: str,
    scale: Scale,
    root: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress = bar,
) -> Any:
    """Compute the data of a table or figure: rows as plain dicts, or the histogram of Figure 8. A second run resumes.

    ``limit`` takes only the first questions of every task of Table 8.
    """
    if name in PERPLEXITIES:
        return measure(name, scale, root, device=device, dtype=dtype, seed=seed, say=say, progress=progress)
    if name == "figure5":
        return figure_5(scale, device, dtype, seed, progress)
    bench = Bench(scale, "LLaMA-7B", root, device=device, dtype=dtype, seed=seed, say=say, progress=progress)
    recipes: dict[str, Callable[[], Any]] = {
        "table8": lambda: table_8(bench, limit),
        "figure1": lambda: figure_1(bench),
        "figure8": lambda: figure_8(bench),
    }
    return recipes[name]()
