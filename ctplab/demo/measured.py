"""What both demos report of scores: perplexities, levels, and shares of the gap, as ``demo.json`` holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctplab.disk import Keep, write_json, write_text
from ctplab.measure.fidelity import fidelity
from ctplab.measure.stats import recovery, wilson
from ctplab.prompts.arms import Arm
from ctplab.runs.stale import weights_id
from ctplab.scores import WindowScores
from ctplab.show.axes import save
from ctplab.text.corpora import Split

ByCorpus = dict[str, WindowScores]
"""One arm's scores."""


def ppl(scores: ByCorpus) -> dict[str, float]:
    """Perplexity by corpus."""
    return {corpus: round(found.score.ppl, 4) for corpus, found in scores.items()}


def level(scores: ByCorpus, manifest: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """One compressed model: its perplexities, its size, and which weights in which folder these are."""
    sizes = ("bytes", "bits_per_weight", "nominal_bits_per_weight")
    about = {key: manifest[key] for key in sizes}
    return {"ppl": ppl(scores), **about, "folder": folder, "weights": weights_id(dict(manifest))}


def recovered(arms: Mapping[str, ByCorpus], seed: int) -> tuple[dict[str, dict], dict[str, dict]]:
    """(perplexity, recovery with its interval) by corpus and arm; ``arms`` has ``full`` and ``compressed``."""
    corpora = list(arms["full"])
    perplexity = {c: {name: round(arms[name][c].score.ppl, 4) for name in arms} for c in corpora}
    shares = {
        c: {
            name: asdict(recovery(arms["full"][c], arms["compressed"][c], arms[name][c], seed=seed))
            for name in arms
            if name not in ("full", "compressed")
        }
        for c in corpora
    }
    return perplexity, shares


def closeness(arms: Sequence[Arm], texts: Sequence[Split], limit: int, keep: Keep) -> dict[str, dict[str, Any]]:
    """Corpus -> arm -> its fidelity to the first of ``arms``, the full model, as ``Fidelity.summary`` tells it."""
    full, *others = arms
    return {
        text.name: {
            arm.name: fidelity(
                arm, full, text, limit=limit, keep=keep, name=f"{text.name}--{arm.name}--against"
            ).summary()
            for arm in others
        }
        for text in texts
    }


def right_answers(marks: list[bool]) -> dict[str, Any]:
    """The share of right answers with its interval."""
    found = wilson(sum(marks), len(marks))
    return {"exact_match": found.value, "low": found.low, "high": found.high, "n": len(marks)}


def write(folder: Path, result: dict[str, Any], text: str, figures: Mapping[str, Any]) -> None:
    """``report.md``, its figures, and last ``demo.json``."""
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    write_text(text, folder / "report.md")
    write_json(result, folder / "demo.json")
