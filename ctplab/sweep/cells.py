"""A grid as cells. A cell is one step: it is done once, it needs at most one other, and any number may need it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ctplab.specs import CompressionSpec, PromptSpec
from ctplab.sweep.grid import Calibration, SweepGrid

STEPS = ("compress", "learn", "score")


def short(name: str) -> str:
    """Shorten the name of a model or corpus for display: a path becomes its last part."""
    return Path(name.removeprefix("file:").split(",")[0]).name if "/" in name else name


@dataclass(frozen=True)
class Cell:
    """One step: compress ``model``, learn a prompt on it, or score one arm on the corpus ``text``."""

    step: str
    model: str
    spec: CompressionSpec | None = None
    """None: the full model."""
    prompt: str | None = None
    """The prompt's name in the sweep file; None: no prompt."""
    recipe: PromptSpec | None = None
    """The prompt's recipe, with its seed."""
    corpus: str | None = None
    """The corpus that the prompt is learned on."""
    text: str | None = None

    @property
    def tag(self) -> str:
        """Compression level, as in folder names."""
        return self.spec.tag if self.spec else "full"

    @property
    def folder(self) -> str:
        """Name of the prompt's folder: prompt, corpus and seed."""
        return f"{self.prompt}-{self.corpus}-s{self.recipe.seed if self.recipe else 0}"

    @property
    def arm(self) -> str:
        """Name of the arm to score: ``full``, ``compressed``, or the prompt's folder."""
        return self.folder if self.prompt else "compressed" if self.spec else "full"

    @property
    def name(self) -> str:
        """A line that is unique in the sweep."""
        parts = [self.step, self.model, self.tag]
        parts += [self.arm] if self.step != "compress" else []
        return " ".join([*parts, "on", self.text] if self.text else parts)

    @property
    def needs(self) -> "Cell | None":
        """The cell that must be done first, or None."""
        if self.step == "score" and self.prompt:
            return replace(self, step="learn", text=None)
        if self.step == "compress" or self.spec is None:
            return None
        return Cell("compress", self.model, self.spec)


@dataclass(frozen=True)
class Settings:
    """Settings that all cells of a sweep share."""

    root: Path
    """Absolute path of the runs."""
    seq_len: int
    windows: int | None
    calibration: Calibration
    device: str | None = None
    dtype: str | None = None
    loss: str | None = None

    def loss_of(self, cell: Cell) -> str | None:
        """What the cell counts in a text. A calibration counts nothing, so any text will do for it."""
        return None if cell.step == "compress" else self.loss


def cells(grid: SweepGrid) -> Iterator[Cell]:
    """Yield all cells, each after the cell it needs, and those of one model and level together."""
    for model in grid.models:
        yield from (Cell("score", model, text=text) for text in grid.score)
        for spec in grid.specs:
            yield Cell("compress", model, spec)
            yield from (Cell("score", model, spec, text=text) for text in grid.score)
            for learned in _learned(grid, model, spec):
                yield learned
                yield from (replace(learned, step="score", text=text) for text in grid.score)


def _learned(grid: SweepGrid, model: str, spec: CompressionSpec) -> Iterator[Cell]:
    for prompt, recipe in grid.prompts.items():
        for corpus in grid.corpora:
            for seed in grid.seeds:
                yield Cell("learn", model, spec, prompt, replace(recipe, seed=seed), corpus)
