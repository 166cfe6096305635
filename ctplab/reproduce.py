"""Recipes for the paper's tables and figures: the same measurements here, beside the printed and corrected numbers.

A recipe is a list of rows: model, compression level, what stands in front, corpus. A row's prompt is learned through
the weights of its own level, or of ``source`` (Figure 4). Everything goes through a run folder: compressed models,
prompts and scores are kept as they come, and a killed run goes on. Table 8, Figures 1, 5 and 8, which are no
perplexities, are in ``reproduce_other.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctplab import paper
from ctplab.compress.loading import load
from ctplab.corpora import Corpus, corpus
from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.progress import Progress, bar
from ctplab.prompts.kv import Arm
from ctplab.prompts.prefix import none
from ctplab.specs import CompressionSpec, PromptSpec
from ctplab.store import Store
from ctplab.study import Study, score_of

LEVELS = {
    "4-bit": CompressionSpec(bits=4),
    "3-bit": CompressionSpec(bits=3),
    "2-bit": CompressionSpec(bits=2),
    "50%": CompressionSpec(sparsity=0.5),
    "62.5%": CompressionSpec(sparsity=0.625),
    "75%": CompressionSpec(sparsity=0.75),
    "50% + 4-bit": CompressionSpec(bits=4, sparsity=0.5),
}
"""The paper's levels; ``fp16`` is the model as it is."""
HUB = {
    "LLaMA-7B": ("huggyllama/llama-7b", 6.7),
    "LLaMA-2-13B": ("meta-llama/Llama-2-13b-hf", 13.0),
    "BLOOM-7B": ("bigscience/bloom-7b1", 7.1),
    "OPT-1.3B": ("facebook/opt-1.3b", 1.3),
    "OPT-2.7B": ("facebook/opt-2.7b", 2.7),
    "OPT-6.7B": ("facebook/opt-6.7b", 6.7),
}
"""The paper's models: where they are today, and their size in billions of parameters."""
CORPORA = ("C4", "Wikitext2", "PTB")


@dataclass(frozen=True)
class Scale:
    """At what size a recipe is run."""

    corpora: dict[str, str]
    """The paper's corpus -> ours; rows on a corpus that is not here are left out."""
    seq_len: int
    windows: int | None
    prompt: PromptSpec
    model: str | None = None
    """None: each row's own model, from the hub."""

    def tokens(self, k: int) -> int:
        """The paper's k, scaled as the prompt is."""
        return max(1, k * self.prompt.tokens // paper.K)


PAPER = Scale({"C4": "c4", "Wikitext2": "wikitext2", "PTB": "ptb"}, paper.SEQ_LEN, None, PromptSpec.paper())
EMBEDDED = Scale(
    {"C4": "atlas-web", "Wikitext2": "atlas-wiki", "PTB": "atlas-news"},
    128,
    64,
    PromptSpec(tokens=64, steps=200, lr=0.1, evaluate_every=50),
    "atlas",
)


@dataclass(frozen=True)
class Row:
    """One number to measure."""

    model: str
    level: str
    method: str
    what: str
    k: int
    source: str | None = None
    """Level whose prompt is used; None: this row's own."""
    value: paper.Value | None = None
    """What the paper prints, where it prints it."""

    @property
    def learned_on(self) -> str | None:
        """The corpus that the row's prompt is learned on; None without a prompt."""
        if self.method in ("none", "lora"):
            return None
        if self.method.startswith("learned on "):
            return self.method.removeprefix("learned on ")
        return self.what if self.method == "direct" else "C4"


def _table(name: str) -> list[Row]:
    return [Row(v.model, v.level, v.method, v.what, v.k, value=v) for v in paper.TABLES[name].values]


def _in_text(row: Row) -> Row:
    """The row with the number that the text gives for it, if any."""
    keys = ("model", "level", "method", "what", "k")
    same = [v for v in paper.IN_TEXT if all(getattr(v, key) == getattr(row, key) for key in keys)]
    return replace(row, value=same[0]) if same else row


def _figure_2() -> list[Row]:
    return [_in_text(Row("LLaMA-7B", level, "none", "C4", 0)) for level in ("fp16", *list(LEVELS)[:6])]


def _figure_3() -> list[Row]:
    return [
        _in_text(Row(model, level, method, what, paper.K if method == "soft" else 0))
        for model in ("OPT-1.3B", "OPT-2.7B", "OPT-6.7B", "LLaMA-7B")
        for level in ("fp16", *list(LEVELS)[:6])
        for method in (("none",) if level == "fp16" else ("none", "soft"))
        for what in CORPORA
    ]


def _figure_4() -> list[Row]:
    levels = list(LEVELS)[:6]
    return [
        Row("LLaMA-7B", target, "none" if source is None else f"from {source}", what, 0 if source is None else paper.K,
            source)
        for target in levels for source in (None, *levels) for what in CORPORA
    ]  # fmt: skip


PERPLEXITIES: dict[str, list[Row]] = {
    **{name: _table(name) for name in paper.TABLES if name != "table8"},
    "figure2": _figure_2(),
    "figure3": _figure_3(),
    "figure4": _figure_4(),
}


def needs(rows: Sequence[Row], scale: Scale) -> str:
    """What a run takes, said beforehand: prompts to learn, memory, disk, and time on one 100-teraflop GPU."""
    prompts = {(r.model, r.source or r.level, r.learned_on, r.k) for r in rows if r.learned_on}
    models = {r.model for r in rows}
    levels = {(r.model, r.level) for r in rows if r.level != "fp16"}
    work = f"{len(levels)} compressed models, {len(prompts)} prompts of {scale.prompt.steps} steps"
    if scale.model is not None:
        return f"{work} on {scale.model}, windows of {scale.seq_len} tokens"
    sizes = {model: HUB[model][1] for model in models}
    memory = 2 * 2 * max(sizes.values()) + 10  # full and compressed in bf16, and activations
    disk = sum(2 * size for size in sizes.values()) + sum(0.6 * 2 * sizes[model] for model, _ in levels)
    tokens = scale.prompt.steps * scale.prompt.batch * (scale.seq_len + paper.K)
    hours = sum(4e9 * sizes[model] * tokens for model, *_ in prompts) / 1e14 / 3600  # forward, and back to the rows
    return (
        f"{work}; about {memory:.0f} GB of GPU memory, {disk:.0f} GB of disk, and {hours:.0f} hours of learning on one "
        f"GPU that does 100 teraflops (estimates). Models: {', '.join(HUB[model][0] for model in sorted(models))}"
    )


def measure(
    rows: Sequence[Row],
    scale: Scale,
    root: Path,
    *,
    device: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = bar,
) -> list[dict[str, Any]]:
    """Run the rows, model by model and level by level; every result a dict with ours and the paper's numbers.

    Rows with LoRA are not run here (``ours`` is None).
    """
    rows = [row for row in rows if row.what in scale.corpora]
    if scale.model is not None:  # one model stands for all: each row once
        unique = {(r.level, r.method, r.what, r.k, r.source): r for r in reversed(rows)}
        rows = list(reversed(unique.values()))
    if not rows:
        raise InputError(f"none of this recipe's corpora is given; it scores {', '.join(CORPORA)}")
    results = {}
    for name in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == name or scale.model is not None]
        if mine[0] in results:
            continue
        study, corpora = open_study(scale, scale.model or HUB[name][0], root, device, progress)
        calibration = corpora[next(iter(corpora))].train.sample(128, seed)
        levels = list(dict.fromkeys(level for row in mine for level in (row.source or row.level, row.level)))

        def model_at(level: str, study: Study = study, calibration: Any = calibration) -> tuple[str, Model]:
            if level in ("fp16", "full"):
                return "full", study.full
            return LEVELS[level].tag, study.compressed(LEVELS[level], calibration)[0]

        prompts = {}
        for level in levels:
            wanted = {(r.learned_on, r.k) for r in mine if r.learned_on and (r.source or r.level) == level}
            if wanted:
                tag, model = model_at(level)
                for what, k in sorted(wanted):
                    say(f"{name} {level}: learning {scale.tokens(k)} tokens on {scale.corpora[what]}")
                    spec = replace(scale.prompt, tokens=scale.tokens(k), seed=seed)
                    text = corpora[what]
                    saved = study.prompt(tag, f"{text.name}-k{spec.tokens}", model, text.train, text.validation, spec)
                    prompts[level, what, k] = saved.prefix
        for level in dict.fromkeys(row.level for row in mine):
            tag, model = model_at(level)
            for row in (r for r in mine if r.level == level):
                prefix = prompts.get((row.source or level, row.learned_on, row.k)) if row.learned_on else none(model)
                results[row] = _result(row, scale, study, tag, model, prefix, corpora)
    return [results[row] for row in rows]


def open_study(
    scale: Scale, model: str, root: Path, device: str | None, progress: Progress
) -> tuple[Study, dict[str, Corpus]]:
    """The base model's run folder, and the corpora by the paper's names."""
    full, tokenizer = load(model, device=device)
    corpora = {what: corpus(name, tokenizer, scale.seq_len) for what, name in scale.corpora.items()}
    return Study(Store(root, model), full, tokenizer, progress), corpora


def _result(
    row: Row, scale: Scale, study: Study, tag: str, model: Model, prefix: Any, corpora: dict[str, Corpus]
) -> dict[str, Any]:
    value = row.value
    result: dict[str, Any] = {
        "model": scale.model or row.model, "level": row.level, "method": row.method, "what": row.what,
        "corpus": scale.corpora[row.what], "k": prefix.k, "printed": value.printed if value else None,
        "corrected": value.corrected if value else None, "ours": None, "ours_as_published": None,
    }  # fmt: skip
    if row.method == "lora":
        return result
    split = corpora[row.what].test
    nll = study.nll(tag, Arm(f"{row.method}-k{prefix.k}".replace(" ", "-"), model, prefix), split, scale.windows)
    score = score_of(nll, scale.seq_len)
    return result | {
        "ours": score.ppl,
        "ours_as_published": score.ppl_as_published(prefix.k, scale.seq_len),
        "n_tokens": score.n_tokens,
    }
