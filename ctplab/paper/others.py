"""Figure 1 with 6 and 7 (answers), Figure 5 (latency) and Figure 8 (cosines), as plain data."""

from dataclasses import asdict
from typing import Any

from ctplab.decoding.generate import generate
from ctplab.formats.loading import load
from ctplab.inspect.similarity import cosine_histogram
from ctplab.measure.latency import latency
from ctplab.paper.bench import Bench
from ctplab.paper.recipes import HUB, OTHER, Scale, chosen
from ctplab.progress import Progress
from ctplab.prompts.arms import Arm, arms
from ctplab.prompts.prefix import hard, none

QUESTIONS = ("Where is Long Beach?", "Where is Tulsa?", "What is asparagus?")


def figure_1(bench: Bench) -> list[dict[str, Any]]:
    """Ask four arms three questions at 62.5% sparsity (Figures 1, 6) and at 4 bits (Figure 7)."""
    rows = []
    for level in (row.level for row in OTHER["figure1"]):
        soft = bench.prompt(level).prefix
        _, model = bench.model(level)
        for arm in arms(bench.study.full, model, hard(model, bench.study.tokenizer), soft):
            texts = [f"Q: {question}\nA:" for question in QUESTIONS]
            given = generate(arm, bench.study.tokenizer, texts, max_new_tokens=48, stop="\n")
            for question, answer in zip(QUESTIONS, given, strict=True):
                rows.append({"level": level, "arm": arm.name, "question": question, "answer": answer.text.strip()})
    return rows


def figure_5(
    scale: Scale, device: str | None, dtype: str | None, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """Latency of the paper's four models (or the one given) against k, behind texts of the windows' length."""
    points = []
    for row in chosen("figure5", scale):
        name = scale.model or HUB[row.model][0]
        model, _ = load(name, device=device, dtype=dtype)
        arm = Arm(name, model, none(model))
        points += latency(arm, length=scale.seq_len, new_tokens=16, seed=seed, progress=progress)
    return [asdict(point) for point in points]


def figure_8(bench: Bench) -> dict[str, Any]:
    """The histogram of cosines at 50% sparsity, with its nulls."""
    prompt = bench.prompt("50%")
    return cosine_histogram(bench.model("50%")[1], *prompt.rows())
