"""Recipes of what is no perplexity: Table 8 (tasks), Figure 1 with 6 and 7 (answers), Figure 5 (latency), Figure 8
(cosines). Each runs on the same run folder as the perplexities and returns plain data."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctplab import paper
from ctplab.compress.loading import load
from ctplab.inspect.similarity import cosine_histogram
from ctplab.measure.latency import latency
from ctplab.measure.tasks import TaskResult, compare, evaluate
from ctplab.progress import Progress, bar
from ctplab.prompts import prefix
from ctplab.prompts.files import SavedPrompt
from ctplab.prompts.generate import generate
from ctplab.prompts.kv import Arm, arms
from ctplab.reproduce import HUB, LEVELS, Scale, open_study
from ctplab.store import kept_in

QUESTIONS = ("Where is Long Beach?", "Where is Tulsa?", "What is asparagus?")
TASKS = ("openbookqa", "hellaswag", "piqa", "european_history_2023")
"""In the order of Table 8's columns."""


class Bench:
    """A model, its compressed versions and one prompt a level, learned on the first corpus."""

    def __init__(self, scale: Scale, root: Path, device: str | None, seed: int, progress: Progress):
        self.scale, self.seed = scale, seed
        self.study, corpora = open_study(scale, scale.model or HUB["LLaMA-7B"][0], root, device, progress)
        self.text = next(iter(corpora.values()))

    def model(self, level: str) -> tuple[str, Any]:
        """(tag, model) of a level."""
        calibration = self.text.train.sample(128, self.seed)
        return LEVELS[level].tag, self.study.compressed(LEVELS[level], calibration)[0]

    def prompt(self, level: str) -> SavedPrompt:
        """The prompt learned at that level; learned now where it is not there yet."""
        tag, model = self.model(level)
        spec = replace(self.scale.prompt, seed=self.seed)
        name = f"{self.text.name}-k{spec.tokens}"
        return self.study.prompt(tag, name, model, self.text.train, self.text.validation, spec)


def table_8(bench: Bench, root: Path, limit: int | None) -> list[dict[str, Any]]:
    """Accuracy of full, compressed and prompted at six levels, with the paired test against no prompt."""
    keep = kept_in(root / "tasks")
    full, tokenizer = bench.study.full, bench.study.tokenizer
    key = {"model": bench.study.store.model, "limit": limit, "prompt": bench.scale.prompt.to_json(), "seed": bench.seed}

    def ask(name: str, arm: Arm) -> dict[str, Any]:
        return keep(name, key, lambda: {t: asdict(r) for t, r in evaluate(arm, tokenizer, TASKS, limit=limit).items()})

    found = {("full", "none"): ask("full", Arm("full", full, prefix.none(full)))}
    for level in list(LEVELS)[:6]:
        tag, model = bench.model(level)
        found[level, "none"] = ask(f"{tag}-none", Arm("compressed", model, prefix.none(model)))
        found[level, "soft"] = ask(f"{tag}-soft", Arm("soft", model, bench.prompt(level).prefix))
    rows = []
    for value in paper.TABLES["table8"].values:
        task = TASKS[paper.TASKS.index(value.what)]
        result = found[value.level, value.method][task]
        row = {"level": value.level, "method": value.method, "task": task, "printed": value.printed}
        row |= {"printed_stderr": value.stderr, **{m: result["metrics"][m] for m in ("acc", "acc_norm")}}
        if value.method == "soft":
            row["against_none"] = _paired(result, found[value.level, "none"][task])
        rows.append(row)
    return rows


def _paired(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return asdict(compare(TaskResult({}, first["marks"]), TaskResult({}, second["marks"]), "acc_norm"))


def figure_1(bench: Bench) -> list[dict[str, Any]]:
    """Three questions to four arms at 62.5% sparsity (Figures 1, 6) and at 4 bits (Figure 7)."""
    rows = []
    for level in ("62.5%", "4-bit"):
        _, model = bench.model(level)
        hard = prefix.hard(model, bench.study.tokenizer)
        for arm in arms(bench.study.full, model, hard, bench.prompt(level).prefix):
            for question in QUESTIONS:
                text = f"Q: {question}\nA:"
                answer = generate(arm, bench.study.tokenizer, [text], max_new_tokens=48, stop="\n")[0]
                rows.append({"level": level, "arm": arm.name, "question": question, "answer": answer.text.strip()})
    return rows


def figure_5(scale: Scale, device: str | None, progress: Progress) -> list[dict[str, Any]]:
    """Latency of the paper's four models (or the one given) against k, behind texts of the windows' length."""
    names = [scale.model] if scale.model else [HUB[m][0] for m in ("OPT-1.3B", "OPT-2.7B", "OPT-6.7B", "LLaMA-7B")]
    points = []
    for name in names:
        model, _ = load(name, device=device)
        arm = Arm(name, model, prefix.none(model))
        found = latency(arm, length=scale.seq_len, new_tokens=16, progress=progress)
        points += [asdict(point) for point in found]
    return points


def figure_8(bench: Bench) -> dict[str, Any]:
    """The histogram at 50% sparsity, against its nulls."""
    return cosine_histogram(bench.model("50%")[1], *bench.prompt("50%").rows())


def run(
    name: str,
    scale: Scale,
    root: Path,
    *,
    device: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress = bar,
) -> Any:
    """The data of one of these recipes; ``limit`` takes the first questions of every task only."""
    if name == "figure5":
        return figure_5(scale, device, progress)
    bench = Bench(scale, root, device, seed, progress)
    recipes: dict[str, Callable[[], Any]] = {
        "table8": lambda: table_8(bench, root, limit),
        "figure1": lambda: figure_1(bench),
        "figure8": lambda: figure_8(bench),
    }
    return recipes[name]()


OTHER = ("table8", "figure1", "figure5", "figure8")
