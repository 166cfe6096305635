"""Recipes for the paper's tables and figures: the numbers to measure, the size of the runs, and their cost.

A recipe is a list of rows: model, compression level, method, corpus. A row's prompt is learned through the weights of
its own level, or of ``source`` (Figure 4). :data:`OTHER` holds the recipes that measure other things than perplexity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ctplab.errors import InputError
from ctplab.paper import printed
from ctplab.specs import CompressionSpec, PromptSpec

LEVELS = {
    "4-bit": CompressionSpec(bits=4),
    "3-bit": CompressionSpec(bits=3),
    "2-bit": CompressionSpec(bits=2),
    "50%": CompressionSpec(sparsity=0.5),
    "62.5%": CompressionSpec(sparsity=0.625),
    "75%": CompressionSpec(sparsity=0.75),
    "50% + 4-bit": CompressionSpec(bits=4, sparsity=0.5),
}
"""The paper's levels; ``fp16`` is the uncompressed model."""
HUB = {
    "LLaMA-7B": ("huggyllama/llama-7b", 6.7),
    "LLaMA-2-13B": ("meta-llama/Llama-2-13b-hf", 13.0),
    "BLOOM-7B": ("bigscience/bloom-7b1", 7.1),
    "OPT-1.3B": ("facebook/opt-1.3b", 1.3),
    "OPT-2.7B": ("facebook/opt-2.7b", 2.7),
    "OPT-6.7B": ("facebook/opt-6.7b", 6.7),
}
"""The paper's models: their hub id today, and their size in billions of parameters."""
CORPORA = ("C4", "Wikitext2", "PTB")
LEARNED_ON = "C4"
TASKS = ("openbookqa", "hellaswag", "piqa", "european_history_2023")
"""In the order of Table 8's columns."""


@dataclass(frozen=True)
class Scale:
    """The size at which a recipe runs."""

    corpora: dict[str, str]
    """The paper's corpus -> ours. Rows on a corpus that is missing here are left out."""
    seq_len: int
    windows: int | None
    prompt: PromptSpec
    model: str | None = None
    """None: each row's own model, from the hub."""
    tasks: tuple[str, ...] = TASKS
    """The tasks of Table 8."""
    loss: str | None = None
    """Which tokens are counted, as in :func:`ctplab.text.corpora.corpus`."""

    def tokens(self, k: int) -> int:
        """Scale the paper's k in proportion to the prompt's length."""
        return max(1, k * self.prompt.tokens // printed.K)


PAPER = Scale({"C4": "c4", "Wikitext2": "wikitext2", "PTB": "ptb"}, printed.SEQ_LEN, None, PromptSpec.paper())
EMBEDDED = Scale(
    {"C4": "atlas-web", "Wikitext2": "atlas-wiki", "PTB": "atlas-news"},
    128,
    64,
    PromptSpec(tokens=64, steps=200, lr=0.1, evaluate_every=50),
    "atlas",
    ("atlas",),
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
    value: printed.Value | None = None
    """The number that the paper prints, if any."""

    @property
    def learned_on(self) -> str | None:
        """The corpus that the row's prompt or adapter is learned on; None if nothing is learned."""
        if self.method == "none":
            return None
        if self.method.startswith("learned on "):
            return self.method.removeprefix("learned on ")
        return self.what if self.method == "direct" else LEARNED_ON


def _table(name: str) -> list[Row]:
    return [Row(v.model, v.level, v.method, v.what, v.k, value=v) for v in printed.TABLES[name].values]


def _in_text(row: Row) -> Row:
    """The row with the number that the paper's text gives for it, if any."""
    keys = ("model", "level", "method", "what", "k")
    same = [v for v in printed.IN_TEXT if all(getattr(v, key) == getattr(row, key) for key in keys)]
    return replace(row, value=same[0]) if same else row


def _figure_2() -> list[Row]:
    return [_in_text(Row("LLaMA-7B", level, "none", "C4", 0)) for level in ("fp16", *list(LEVELS)[:6])]


def _figure_3() -> list[Row]:
    return [
        _in_text(Row(model, level, method, what, printed.K if method == "soft" else 0))
        for model in ("OPT-1.3B", "OPT-2.7B", "OPT-6.7B", "LLaMA-7B")
        for level in ("fp16", *list(LEVELS)[:6])
        for method in (("none",) if level == "fp16" else ("none", "soft"))
        for what in CORPORA
    ]


def _figure_4() -> list[Row]:
    levels = list(LEVELS)[:6]
    return [
        Row("LLaMA-7B", target, f"from {source}" if source else "none", what, printed.K if source else 0, source)
        for target in levels for source in (None, *levels) for what in CORPORA
    ]  # fmt: skip


PERPLEXITIES: dict[str, list[Row]] = {
    **{name: _table(name) for name in printed.TABLES if name != "table8"},
    "figure2": _figure_2(),
    "figure3": _figure_3(),
    "figure4": _figure_4(),
}
OTHER: dict[str, list[Row]] = {
    "table8": [Row("LLaMA-7B", level, "soft", LEARNED_ON, printed.K) for level in list(LEVELS)[:6]],
    "figure1": [Row("LLaMA-7B", level, "soft", LEARNED_ON, printed.K) for level in ("62.5%", "4-bit")],
    "figure5": [Row(m, "fp16", "none", LEARNED_ON, 0) for m in ("OPT-1.3B", "OPT-2.7B", "OPT-6.7B", "LLaMA-7B")],
    "figure8": [Row("LLaMA-7B", "50%", "soft", LEARNED_ON, printed.K)],
}
"""The models and prompts for accuracies, answers, latency and cosines. Each of these has its own function."""
ROWS = PERPLEXITIES | OTHER


def chosen(name: str, scale: Scale) -> list[Row]:
    """The rows of a recipe that a scale measures: those on its corpora, each once if one model stands for all.

    Raises InputError if no row is left.
    """
    given = {None, *scale.corpora}
    rows = [row for row in ROWS[name] if row.what in given and row.learned_on in given]
    if scale.model is not None:
        first: dict[tuple, Row] = {}
        for row in rows:
            first.setdefault((row.level, row.method, row.what, row.k, row.source), row)
        rows = list(first.values())
    if not rows:
        wanted = dict.fromkeys(row.what for row in ROWS[name])
        raise InputError(f"{name} is about {', '.join(wanted)}; give corpora for {', '.join(CORPORA)}, in this order")
    return rows


def needs(rows: Sequence[Row], scale: Scale) -> str:
    """Describe the cost of a run before it starts: learning, memory, disk, and time on one 100-teraflop GPU."""
    prompts = {(r.model, r.source or r.level, r.learned_on, r.k) for r in rows if r.learned_on and r.method != "lora"}
    adapters = {(r.model, r.level, r.learned_on) for r in rows if r.method == "lora"}
    levels = {(r.model, r.level) for r in rows if r.level != "fp16"}
    parts = {
        "compressed models": len(levels),
        f"prompts of {scale.prompt.steps} steps": len(prompts),
        f"LoRA adapters of {scale.prompt.steps} steps": len(adapters),
    }
    work = ", ".join(f"{n} {what}" for what, n in parts.items() if n) or "nothing to learn"
    if scale.model is not None:
        return f"{work} on {scale.model}, windows of {scale.seq_len} tokens"
    sizes = {row.model: HUB[row.model][1] for row in rows}
    memory = 2 * 2 * max(sizes.values()) + 10  # full and compressed in bf16, and activations
    disk = sum(2 * size for size in sizes.values()) + sum(0.6 * 2 * sizes[model] for model, _ in levels)
    tokens = scale.prompt.steps * scale.prompt.batch * (scale.seq_len + printed.K)
    learned = [model for model, *_ in (*prompts, *adapters)]
    hours = sum(4e9 * sizes[model] * tokens for model in learned) / 1e14 / 3600  # forward, and backward to the rows
    return (
        f"{work}; about {memory:.0f} GB of GPU memory, {disk:.0f} GB of disk, and {hours:.0f} hours of learning on one "
        f"GPU that does 100 teraflops (estimates). Models: {', '.join(HUB[model][0] for model in sorted(sizes))}"
    )
