"""Learning a soft prompt through frozen weights: Eq. (1) of arXiv 2305.11186.

    min over E (k, d) of  Σ_t -log p_θ̃(x_t | E, x_0 .. x_{t-1}),  t = 1 .. n      (the first token is not a target)

The loss can be mixed with KL(p_θ || p_θ̃) to the full model. θ̃ never changes. E's keys and values do not depend on
the text, so a step computes them once for one row, and the batch shares them. The gradient equals that of plain
concatenation, at a fraction of its cost. With several θ̃ one E is learned for all of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ctplab.errors import InputError
from ctplab.learning.learned import Learned, Step
from ctplab.learning.loop import finish, take_steps
from ctplab.learning.redraw import Redraw
from ctplab.learning.teacher import Teacher
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.progress import Progress, bar
from ctplab.prompts import prefix
from ctplab.prompts.compiled import KV, check_width, compile_rows
from ctplab.prompts.prefix import Prefix
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split

__all__ = ["Learned", "Step", "initial_rows", "learn", "learn_steps", "start"]


class Rows:
    """E, the rows (k, d) of a soft prompt, as parameters to learn."""

    random = False

    def __init__(self, initial: Prefix, model: Model) -> None:
        check_width(model, initial)
        self.k = initial.k
        self.ids = initial.ids
        self.parameters = {"E": initial.rows.float().to(embeddings(model).device, copy=True).requires_grad_(True)}

    @property
    def rows(self) -> Tensor:
        return self.parameters["E"]

    def kv(self, model: Model) -> KV:
        return compile_rows(model, self.parameters["E"])

    def frozen(self, values: dict[str, Tensor]) -> Prefix:
        return Prefix("soft", values["E"].float().cpu().clone(), self.ids)


def initial_rows(
    model: Model,
    spec: PromptSpec,
    tokenizer: Tokenizer | None = None,
    train: Split | None = None,
    earlier: Prefix | None = None,
) -> Prefix:
    """Build the rows that E starts from. Raises InputError if an argument that ``spec.init`` needs is missing."""
    if spec.init == "vocab-random":
        return prefix.random_rows(model, spec.tokens, spec.seed, "init")
    if spec.init == "vocab-first":
        return prefix.first_rows(model, spec.tokens)
    if spec.init == "frequent":
        if train is None:
            raise InputError("the init 'frequent' needs the training split")
        return prefix.frequent_rows(model, train.stream, spec.tokens)
    if spec.init == "prompt":
        if earlier is None:
            raise InputError("the init 'prompt' needs an earlier prompt")
        check_width(model, earlier)
        return prefix.resized(earlier, spec.tokens)
    if tokenizer is None:
        raise InputError("an initial text needs the tokenizer")
    return prefix.text_rows(model, tokenizer, spec.init_text or "", spec.tokens)


def start(
    model: Model | list[Model],
    spec: PromptSpec,
    tokenizer: Tokenizer | None = None,
    train: Split | None = None,
    earlier: Prefix | None = None,
) -> Learned[Prefix]:
    """Make a result that holds the untrained prompt and no steps."""
    first = model[0] if isinstance(model, list) else model
    initial = initial_rows(first, spec, tokenizer, train, earlier)
    return Learned(Prefix("soft", initial.rows.clone(), initial.ids), initial)


def learn_steps(
    model: Model | list[Model],
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: Model | Teacher | None = None,
    earlier: Prefix | None = None,
    state: Path | None = None,
    redraw: Redraw | None = None,
    result: Learned[Prefix] | None = None,
) -> Iterator[Step]:
    """Learn step by step; ``result`` (make one with :func:`start`) always holds the best prompt so far.

    ``model``: one model, or a list of models that take turns, one step each, and validate by their mean. ``teacher``:
    the full model, or its cached log-probabilities. ``earlier``: the prompt that the init 'prompt' starts from.
    ``state``: learning saves to this file at every validation and resumes from it. A resumed run gives the same curve.
    ``redraw``: one more model, compressed anew as learning goes, that takes its turn and no part in validation.
    """
    models = model if isinstance(model, list) else [model]
    if not models:
        raise InputError("give at least one model to learn on")
    result = result or start(models, spec, tokenizer, train, earlier)
    rows = Rows(result.initial, models[0])
    how: dict[str, Any] = {"teacher": teacher, "state": state, "redraw": redraw}
    yield from take_steps(rows, models, train, validation, spec, result, **how)


def learn(
    model: Model | list[Model],
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: Model | Teacher | None = None,
    earlier: Prefix | None = None,
    state: Path | None = None,
    redraw: Redraw | None = None,
    progress: Progress = bar,
) -> Learned[Prefix]:
    """Learn a prompt to the end (see :func:`learn_steps`). An interrupt (Ctrl-C) ends it early and keeps the best."""
    result = start(model, spec, tokenizer, train, earlier)
    steps = learn_steps(model, train, validation, spec, teacher=teacher, state=state, result=result, redraw=redraw)
    return finish(steps, result, spec, progress)
