"""Run the rows of a recipe: our perplexities next to the paper's, printed and corrected.

A row with a prompt or LoRA also gives the change in loss against the same model alone.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctplab.measure.stats import Interval, change
from ctplab.measure.transfer import TransferCell
from ctplab.paper.bench import Bench
from ctplab.paper.recipes import Row, Scale, chosen
from ctplab.progress import Progress, bar
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import AnyPrefix, none
from ctplab.scores import WindowScores


def measure(
    name: str,
    scale: Scale,
    root: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = bar,
) -> list[dict[str, Any]]:
    """Run the recipe ``name`` by model and level. Returns a dict for every row, in the paper's order."""
    rows = chosen(name, scale)
    found: dict[Row, dict[str, Any]] = {}
    for model in dict.fromkeys("" if scale.model else row.model for row in rows):
        mine = [row for row in rows if row.model == model or scale.model]
        bench = Bench(scale, mine[0].model, root, device=device, dtype=dtype, seed=seed, say=say, progress=progress)
        prompts = {source: _prompt(bench, source) for source in dict.fromkeys(_source(row) for row in mine) if source}
        for level in dict.fromkeys(row.level for row in mine):
            found |= _level(bench, [row for row in mine if row.level == level], prompts)
    return [found[row] for row in rows]


Source = tuple[str, str, int]
"""The origin of a prompt: level, corpus, the paper's k."""


def _source(row: Row) -> Source | None:
    if row.learned_on is None or row.method == "lora":
        return None
    return row.source or row.level, row.learned_on, row.k


def _prompt(bench: Bench, source: Source) -> AnyPrefix:
    level, what, k = source
    return bench.prompt(level, what, bench.scale.tokens(k)).prefix


def _level(bench: Bench, rows: list[Row], prompts: dict[Source, AnyPrefix]) -> dict[Row, dict[str, Any]]:
    """Measure the rows of one model at one level."""
    scale = bench.scale
    scores: dict[Row, WindowScores] = {}
    results: dict[Row, dict[str, Any]] = {}
    for row in rows:
        tag, model = bench.model(row.level)
        source = _source(row)
        prefix = prompts[source] if source else none(model)
        with bench.adapted(row.level) if row.method == "lora" else nullcontext(model) as used:
            arm = Arm(f"{row.method}-k{prefix.k}", used, prefix)
            scores[row] = bench.study.scores(tag, arm, bench.texts[row.what].test, scale.windows)
        score = scores[row].score
        results[row] = {
            "model": scale.model or row.model, "paper_model": row.model, "level": row.level, "method": row.method,
            "what": row.what, "corpus": scale.corpora[row.what], "k": prefix.k, "source": row.source,
            "printed": row.value.printed if row.value else None,
            "corrected": row.value.corrected if row.value else None,
            "ours": score.ppl, "ours_as_published": score.ppl_as_published(prefix.k, scale.seq_len),
            "nll": score.nll, "n_tokens": score.n_tokens, "change": None,
        }  # fmt: skip
    alone = {row.what: row for row in rows if row.method == "none"}
    for row in rows:
        if row.method != "none" and row.what in alone:
            results[row]["change"] = asdict(change(scores[row], scores[alone[row.what]]))
    return results


def cells(found: list[dict[str, Any]]) -> list[TransferCell]:
    """Figure 4's rows as a transfer matrix: the prompts of every level on every level."""
    return [
        TransferCell(
            row["source"] or "none",
            row["level"],
            row["corpus"],
            row["source"] == row["level"],
            row["nll"],
            row["n_tokens"],
            Interval(**row["change"]) if row["change"] else None,
        )
        for row in found
    ]
