"""Exact match on closed-book questions, greedy, for any arm."""

import torch

from ctplab import parallel
from ctplab.atlas.questions import Question, is_correct
from ctplab.decoding.generate import greedy
from ctplab.models import Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm

MAX_ANSWER = 14  # tokens; the longest answer of the embedded world has fewer


def answers(
    arm: Arm, tokenizer: Tokenizer, questions: list[Question], *, batch: int = 256, progress: Progress = silent
) -> list[str]:
    """The arm's answer to every question: its first line, in the questions' order. Processes share the batches."""
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    device = embeddings(arm.model).device
    rows = [tokenizer(q.prompt, add_special_tokens=arm.prefix.k == 0)["input_ids"] for q in questions]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # similar lengths together: little padding
    found: list[tuple[int, str]] = []
    starts = parallel.share(list(range(0, len(order), batch)))
    for at in progress(starts, total=len(starts), label=f"ask {arm.name}"):
        chosen = order[at : at + batch]
        length = max(len(rows[i]) for i in chosen)
        ids = torch.tensor([[0] * (length - len(rows[i])) + rows[i] for i in chosen], device=device)
        mask = torch.tensor([[0] * (length - len(rows[i])) + [1] * len(rows[i]) for i in chosen], device=device)
        new = greedy(arm, ids, mask, MAX_ANSWER, newline)
        for i, row in zip(chosen, new, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True).strip("\n").split("\n")[0].strip()
            found.append((i, text))
    return [text for _, text in sorted(parallel.gather(found))]


def marks(given: list[str], questions: list[Question]) -> list[bool]:
    """Right or wrong, question by question."""
    return [is_correct(answer, question) for answer, question in zip(given, questions, strict=True)]
