"""The loop that learns rows, keys and values, or adapters through frozen models.

In one step each process takes its share of the batch and works through it piece by piece. The processes sum their
gradients, and AdamW updates the parameters (fp32 whatever the model's dtype). The iterator yields a :class:`Step` for
each step. A progress bar, a notebook or an app needs nothing else.

A card gets the steps recorded (see ``learning/graph``), and the host does not wait for one before it sends the next. It
reads the losses a few times a second and then yields all steps since.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ctplab import parallel
from ctplab.compression.linear import without_copies
from ctplab.disk import check_writable
from ctplab.errors import InputError
from ctplab.learning import schedule
from ctplab.learning.graph import Steps
from ctplab.learning.learned import Learned, Step
from ctplab.learning.objective import nll
from ctplab.learning.redraw import Redraw
from ctplab.learning.state import load_state, save_state
from ctplab.learning.step import Gradient, Learnable
from ctplab.learning.teacher import MemoryTeacher, Teacher, TopKTeacher
from ctplab.learning.turns import Turns
from ctplab.learning.windows import Windows
from ctplab.models import Model
from ctplab.models.anatomy import check_context, check_ids, embeddings
from ctplab.models.fingerprints import tensor_fingerprint, weights_fingerprint
from ctplab.progress import Progress
from ctplab.prompts.head import Halves, halves
from ctplab.scores import Score, predicted
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split

P = TypeVar("P")

READ_EVERY = 0.2
"""Seconds between two readings of a card's losses."""


@torch.no_grad()
def _validate(learnable: Learnable, models: list[Halves], text: Windows, batch: int) -> float:
    """NLL a target of ``text``, the mean over the models."""
    total = torch.zeros((), dtype=torch.float64, device=text.ids.device)
    for cut in models:
        vocabulary = cut.model.get_output_embeddings().weight.shape[0]
        kv = learnable.kv(cut.model)
        for part in parallel.share(torch.arange(len(text.ids))).split(batch):
            if len(part):
                ids, masks = text.take(part)
                states, targets = predicted(cut.states(kv, ids), ids, masks)
                total += nll(states, cut.head, vocabulary, targets).double().to(total.device)
    parallel.add_up([total])
    return Score(float(total) / len(models), text.targets).mean


def _check(models: Sequence[Model], train: Split, spec: PromptSpec, k: int, teacher: Teacher | None) -> None:
    if spec.taught and teacher is None:
        what = "the KL objective" if spec.kl > 0 else "the hidden-state loss"
        raise InputError(f"{what} needs the full model as teacher")
    if spec.hidden > 0 and not isinstance(teacher, MemoryTeacher):
        raise InputError("the hidden-state loss needs the full model itself as teacher: a cached one has no states")
    if spec.batch < parallel.size():
        raise InputError(f"a batch of {spec.batch} cannot be shared by {parallel.size()} processes; raise the batch")
    shapes = {tuple(embeddings(model).shape) for model in models}
    if len(shapes) > 1:
        raise InputError(f"models to learn one prompt on need one vocabulary and width, not {sorted(shapes)}")
    vocabulary = models[0].get_output_embeddings().weight.shape[0]
    if spec.taught and teacher is not None and teacher.vocabulary != vocabulary:
        raise InputError(f"the teacher has {teacher.vocabulary} tokens, the model {vocabulary}: both need the same")
    if isinstance(teacher, TopKTeacher) and teacher.corpus != train.fingerprint:
        raise InputError("the cached teacher was made for other text or windows than are learned from")
    for model in models:
        check_context(model, k, train.seq_len)


def _check_states(cuts: Sequence[Halves], teacher: MemoryTeacher) -> None:
    for width in [teacher.width, *(cut.width for cut in cuts)]:
        if width is None:
            raise InputError("the hidden-state loss needs a model whose head makes its logits and does nothing else")
        if width != teacher.width:
            raise InputError(f"the teacher's hidden states are {teacher.width} wide, the model's {width}")


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
        if not spec.taught:
            teacher = None
        elif teacher is not None and not isinstance(teacher, Teacher):
            teacher = MemoryTeacher(teacher)
        _check(models, train, spec, learnable.k, teacher)
        if state is not None:
            check_writable(state.parent)
        device = embeddings(models[0]).device
        text = Windows.of(train, device)
        check_ids(models[0], train.windows)
        check_ids(models[0], validation.windows)
        plan = schedule.validations(spec, len(text.ids), len(validation.windows), len(models))
        held_out = Windows.of(validation, device, plan.windows)
        parameters = learnable.parameters
        result.validation_tokens, result.train_tokens = held_out.targets, text.targets
        result.values = sum(p.numel() for p in parameters.values())
        result.epochs = spec.steps * min(spec.batch, len(text.ids)) / len(text.ids)
        identity: dict[str, Any] = {
            "recipe": spec.to_json(),
            "corpus": [train.fingerprint, validation.fingerprint],
            "start": tensor_fingerprint(*parameters.values()),
            "model": [weights_fingerprint(model) for model in models],
            "teacher": None if teacher is None else teacher.fingerprint,
            **turns.identity,
        }
        optimizer = torch.optim.AdamW(list(parameters.values()), lr=spec.lr, weight_decay=spec.weight_decay)
        cuts = [halves(model) for model in turns.models]
        if spec.hidden > 0 and isinstance(teacher, MemoryTeacher):
            _check_states(cuts, teacher)
        first = 0
        kept = None if state is None else load_state(state, parameters, optimizer, identity)
        if kept is not None:
            best, record = kept
            result.prefix, first = learnable.frozen(best), record["step"]
            result.best_step, result.best_validation = record["best_step"], record["best_validation"]
            result.steps[:] = [Step(**step) for step in record["curve"]]
            result.before = record.get("before", math.inf)
        else:
            best = {name: p.detach().cpu().clone() for name, p in parameters.items()}
            result.before = result.best_validation = _validate(learnable, cuts[: len(models)], held_out, spec.batch)
        parallel.wait()  # no process writes the state before all have read it
        if isinstance(teacher, TopKTeacher):
            teacher = teacher.near(device)
        gradient = Steps([Gradient.of(learnable, cut, text, spec, teacher) for cut in cuts])
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        patient = _patient(device)
        unread: list[tuple[int, float, Tensor]] = []  # steps whose loss and gradient norm are still on the device
        since = time.perf_counter()

        for step, numbers in enumerate(schedule.batches(len(text.ids), spec, first), first):
            if spec.patience is not None and result.stale >= spec.patience:
                result.stopped = f"stopped after {step} steps: {spec.patience} validations without a better one"
                return
            lr = optimizer.param_groups[0]["lr"] = schedule.rate(spec, step)
            n_targets = max(1, text.targets_of(numbers))
            seeded = _seeded(schedule.seed_of(spec, step), device) if learnable.random else nullcontext()
            with turns.on(step) as number, seeded:
                loss = gradient(number, parallel.share(numbers), n_targets)
            parallel.add_up([loss, *(p.grad for p in parameters.values() if p.grad is not None)])
            norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), spec.clip)
            optimizer.step()
            unread.append((step, lr, torch.stack([loss, norm.to(loss)])))
            if patient and not plan.due(step) and time.perf_counter() - since < READ_EVERY:
                continue
            read = torch.stack([each for _, _, each in unread]).tolist()
            result.not_recorded = gradient.obstacle if device.type == "cuda" else None
            trained = (time.perf_counter() - since) / len(unread)
            finite = [all(map(math.isfinite, each)) for each in read]
            lost = None if all(finite) else unread[finite.index(False)][0]
            measured = None
            if lost is None and plan.due(step):
                measured = _validate(learnable, cuts[: len(models)], held_out, spec.batch)
                if measured < result.best_validation:
                    result.best_validation, result.best_step = measured, step + 1
                    best = {name: p.detach().cpu().clone() for name, p in parameters.items()}
                    result.prefix = learnable.frozen(best)
            seconds = (time.perf_counter() - since) / len(unread)
            tokens = len(numbers) * train.seq_len
            fresh = [
                Step(at, each[0], rate, seconds, tokens / trained, measured if at == step else None)
                for (at, rate, _), each in zip(unread, read, strict=True)
                if lost is None or at < lost
            ]
            result.steps += fresh
            if measured is not None and state is not None and parallel.is_main():
                record = {"step": step + 1, "best_step": result.best_step, "best_validation": result.best_validation}
                record["before"] = result.before
                record["curve"] = [asdict(s) for s in result.steps]
                save_state(state, parameters, optimizer, best, identity, record)
            unread.clear()
            yield from fresh
            if lost is not None:
                result.stopped = f"the loss was not finite at step {lost}: stopped with the best so far"
                return
            since = time.perf_counter()


def _patient(device: torch.device) -> bool:
    """Whether losses may wait to be read. Several processes must stop at the same step, so each reads every loss."""
    return device.type == "cuda" and parallel.size() == 1


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
