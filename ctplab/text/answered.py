"""Questions with their answers as windows of which only the answers count: to compare arms on what one of them said."""

from collections.abc import Sequence

import torch

from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.text.corpora import Split
from ctplab.text.reading import encode, words


def answered(
    tokenizer: Tokenizer, questions: Sequence[str], answers: Sequence[str], *, raw: bool = False, start: str = "auto"
) -> Split:
    """A window a question: its text as every arm reads it (``text.reading.encode``), the answer, and filling.

    The targets are the answer's tokens. Filling stands behind them, so a causal model's answer does not see it.
    Questions that were answered with nothing are left out. Raises InputError if none is left.
    """
    rows = list[tuple[list[int], int]]()
    for question, answer in zip(questions, answers, strict=True):
        if answer.strip():
            ids = encode(tokenizer, question, raw=raw, start=start)
            # in the form "Q: ... A:" a space belongs to the answer; behind a template nothing does
            rows.append((ids + words(tokenizer, answer if not raw else f" {answer.strip()}"), len(ids)))
    if not rows:
        raise InputError("no question has an answer to compare on")
    length = max(len(ids) for ids, _ in rows)
    stream = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (ids, first) in enumerate(rows):
        stream[i, : len(ids)] = torch.tensor(ids)
        mask[i, first : len(ids)] = True
    return Split("answers", "test", stream.flatten(), length, mask.flatten())
