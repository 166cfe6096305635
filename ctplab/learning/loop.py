"""The loop that learns rows, keys and values, or adapters through frozen models.

In one step each process takes its share of the batch and works through it piece by piece. The processes sum their
gradients, and AdamW updates the parameters (fp32 whatever the model's dtype). The iterator yields a :class:`Step` for
each step. A progress bar, a notebook or an app needs nothing else.

A card gets the steps recorded (see ``learning/graph``), and the host does not wait for one before it sends the next. It
reads the losses a few times a second and then yields all steps since.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from ctplab import parallel
from ctplab.compression.linear import without_copies
from ctplab.learning import schedule
from ctplab.learning.course import Course
from ctplab.learning.graph import Steps
from ctplab.learning.learned import Learned, Step
from ctplab.learning.readings import Unread
from ctplab.learning.redraw import Redraw
from ctplab.learning.refusals import check, check_states
from ctplab.learning.step import Gradient, Learnable
from ctplab.learning.teacher import MemoryTeacher, Teacher, TopKTeacher
from ctplab.learning.turns import Turns
from ctplab.learning.windows import Windows
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import tensor_fingerprint, weights_fingerprint
from ctplab.progress import Progress
from ctplab.prompts.head import halves
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split

P = TypeVar("P")


def take_steps(
    learnable: Learnable[P],
    models: Sequence[Model],
    train: Split,
    validation: Split,
    spec: PromptSpec,
    result: Learned[P],
    *,
    teacher: Model | Teacher | None = None,
    state: Path | None = None,
    redraw: Redraw | None = None,
) -> Iterator[Step]:
    """Learn step by step; ``result`` always holds the best so far. Several models take turns, one step each.

    ``redraw``: one more model that takes its turn, and no part in validation.
    ``state``: the loop saves to this file at every validation and resumes from it. A resumed run gives the same curve.
    Raises InputError if recipe, text and models do not fit together.
    """
    with without_copies(models):
        turns = Turns(models, redraw, teacher, spec)
        teacher = _teacher(teacher, spec)
        check(models, train, validation, spec, learnable.k, teacher)
        device = embeddings(models[0]).device
        text, cuts = Windows.of(train, device), [halves(model) for model in turns.models]
        if spec.hidden > 0 and isinstance(teacher, MemoryTeacher):
            check_states(cuts, teacher)
        plan = schedule.validations(spec, len(text.ids), len(validation.windows), len(models))
        held_out = Windows.of(validation, device, plan.windows)
        course = Course(learnable, cuts[: len(models)], held_out, spec, result)
        result.train_tokens = text.targets
        result.epochs = spec.steps * min(spec.batch, len(text.ids)) / len(text.ids)
        identity: dict[str, Any] = {
            "recipe": spec.to_json(),
            "corpus": [train.fingerprint, validation.fingerprint],
            "start": tensor_fingerprint(*learnable.parameters.values()),
            "model": [weights_fingerprint(model) for model in models],
            "teacher": None if teacher is None else teacher.fingerprint,
            **turns.identity,
        }
        first = course.begin(state, identity)
        if isinstance(teacher, TopKTeacher):
            teacher = teacher.near(device)
        gradient = Steps([Gradient.of(learnable, cut, text, spec, teacher) for cut in cuts])
        for p in learnable.parameters.values():
            p.grad = torch.zeros_like(p)
        unread = Unread(device)

        for step, numbers in enumerate(schedule.batches(len(text.ids), spec, first), first):
            if spec.patience is not None and result.stale >= spec.patience:
                result.stopped = f"stopped after {step} steps: {spec.patience} validations without a better one"
                return
            rate = course.optimizer.param_groups[0]["lr"] = schedule.rate(spec, step)
            n_targets = max(1, text.targets_of(numbers))
            seeded = _seeded(schedule.seed_of(spec, step), device) if learnable.random else nullcontext()
            with turns.on(step) as number, seeded:
                loss = gradient(number, parallel.share(numbers), n_targets)
            unread.add(step, rate, course.move(loss))
            if unread.may_wait and not plan.due(step):
                continue
            lost = unread.read()
            result.not_recorded = gradient.obstacle if device.type == "cuda" else None
            measured = course.measure(step) if lost is None and plan.due(step) else None
            fresh = unread.take(len(numbers) * train.seq_len, measured)
            result.steps += fresh
            if measured is not None and state is not None and parallel.is_main():
                course.save(state, identity, step + 1)
            yield from fresh
            if lost is not None:
                result.stopped = f"the loss was not finite at step {lost}: stopped with the best so far"
                return
            unread.restart()


def _teacher(given: Model | Teacher | None, spec: PromptSpec) -> Teacher | None:
    """The teacher that the recipe asks for: none, the given one, or the full model itself."""
    if given is None or not spec.taught:
        return None
    return given if isinstance(given, Teacher) else MemoryTeacher(given)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's random numbers are those of ``seed``, for an adapter's dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def finish(steps: Iterator[Step], result: Learned[P], spec: PromptSpec, progress: Progress) -> Learned[P]:
    """Take all steps. An interrupt (Ctrl-C) ends them early and keeps the best.

    It passes on as KeyboardInterrupt if nothing was validated after a step: there is no best yet to keep.
    """
    try:
        for _ in progress(steps, total=spec.steps, label="learn"):
            pass
    except KeyboardInterrupt:
        if all(step.validation is None for step in result.steps):
            raise
        result.stopped = f"interrupted after {len(result.steps)} steps"
    return result
