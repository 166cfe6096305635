"""A grid as cells. A cell is one step: done once, needed by any number of others, and needing at most one itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ctplab.specs import CompressionSpec, PromptSpec
from ctplab.sweep.grid import Calibration, SweepGrid

STEPS = ("compress", "learn", "score")


def short(name: str) -> str:
    """A model or corpus for reading: paths by their last part."""
    return Path(name.removeprefix("file:").split(",")[0]).name if "/" in name else name


@dataclass(frozen=True)
class Cell:
    """Compress ``model``; learn a prompt on it; or score one arm on the corpus ``text``."""

    step: str
    model: str
    spec: CompressionSpec | None = None
    """None: the full model."""
    prompt: str | None = None
    """The prompt's name in the sweep file; None: no prompt."""
    recipe: PromptSpec | None = None
    """How it is learned, its seed included."""
    corpus: str | None = None
    """What it is learned on."""
    text: str | None = None

    @property
    def tag(self) -> str:
        """Compression level, as folders are named."""
        return self.spec.tag if self.spec else "full"

    @property
    def folder(self) -> str:
        """What the prompt's folder is called: prompt, corpus and seed."""
        return f"{self.prompt}-{self.corpus}-s{self.recipe.seed if self.recipe else 0}"

    @property
    def arm(self) -> str:
        """Which arm is scored: ``full``, ``compressed``, or the prompt's folder."""
        return self.folder if self.prompt else "compressed" if self.spec else "full"

    @property
    def name(self) -> str:
        """One line that no other cell of the sweep has."""
        parts = [self.step, self.model, self.tag]
        parts += [self.arm] if self.step != "compress" else []
        return " ".join([*parts, "on", self.text] if self.text else parts)

    @property
    def needs(self) -> "Cell | None":
        """The cell that must be done before."""
        if self.step == "score" and self.prompt:
            return replace(self, step="learn", text=None)
        if self.step == "compress" or self.spec is None:
            return None
        return Cell("compress", self.model, self.spec)


@dataclass(frozen=True)
class Settings:
    """What all cells of a sweep share."""

    root: Path
    """The runs; absolute."""
    seq_len: int
    windows: int | None
    calibration: Calibration
    device: str | None = None
    dtype: str | None = None


def cells(grid: SweepGrid) -> Iterator[Cell]:
    """All cells, each behind what it needs, those of one model and level together."""
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
