"""Learning a soft prompt through frozen weights: Eq. (1) of arXiv 2305.11186.

    min over E (k, d) of  Σ_t -log p_θ̃(x_t | E, x_0 .. x_{t-1}),  t = 1 .. n      (the first token is no target)

optionally mixed with KL(p_θ || p_θ̃) to the full model. θ̃ is never changed. E's keys and values do not depend on
the text, so they are computed once a step for one row and shared by the batch: the gradient is that of plain
concatenation, at a fraction of its cost. E and the optimiser live in fp32 whatever the model's dtype.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ctplab.corpora import Split
from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer, check_context, embeddings
from ctplab.progress import Progress, bar
from ctplab.prompts import prefix
from ctplab.prompts.kv import compile_rows, logits_after
from ctplab.prompts.prefix import Prefix
from ctplab.specs import PromptSpec


@dataclass(frozen=True)
class Step:
    """What one step of learning tells."""

    step: int
    loss: float
    lr: float
    seconds: float
    validation: float | None = None
    """NLL a token on the validation windows, where this step measured it."""


@dataclass
class Learned:
    """The best prompt so far and the way there."""

    prefix: Prefix
    initial: Prefix
    steps: list[Step] = field(default_factory=list)
    best_step: int = 0
    best_validation: float = math.inf
    validation_tokens: int = 0
    stopped: str | None = None
    """Why learning ended early, if it did."""


def initial_rows(model: Model, tokenizer: Tokenizer | None, spec: PromptSpec) -> Prefix:
    """The rows that E starts from."""
    if spec.init == "vocab-random":
        return prefix.random_rows(model, spec.tokens, spec.seed, "init")
    if spec.init == "vocab-first":
        return prefix.first_rows(model, spec.tokens)
    if tokenizer is None:
        raise InputError("an initial text needs the tokenizer")
    return prefix.text_rows(model, tokenizer, spec.init_text or "", spec.tokens)


def rate(spec: PromptSpec, step: int) -> float:
    """Learning rate: linear warm-up, then linear to zero."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    return spec.lr * (spec.steps - step) / max(1, spec.steps - spec.warmup)


def _loss(logits: Tensor, ids: Tensor, teacher: Tensor | None, kl: float) -> Tensor:
    """Mean over targets of (1 - kl) · NLL + kl · KL(teacher || student)."""
    scores = F.log_softmax(logits[:, :-1].float(), -1)
    loss = logits.new_zeros((), dtype=torch.float32)
    if kl < 1:
        loss = loss + (1 - kl) * F.nll_loss(scores.flatten(0, 1), ids[:, 1:].flatten())
    if kl > 0 and teacher is not None:
        p = F.log_softmax(teacher[:, :-1].float(), -1)
        loss = loss + kl * F.kl_div(scores.flatten(0, 1), p.flatten(0, 1), log_target=True, reduction="batchmean")
    return loss


@torch.no_grad()
def _validate(model: Model, E: Tensor, windows: Tensor, batch: int) -> float:
    """NLL a token of the prompted model on ``windows`` (N, T)."""
    kv = compile_rows(model, E)
    total = 0.0
    for ids in windows.split(batch):
        logits = logits_after(model, kv, ids)[:, :-1]
        total += float(F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"))
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def _batches(windows: Tensor, spec: PromptSpec, first: int) -> Iterator[Tensor]:
    """Batches from step ``first`` on: every epoch a fresh permutation that depends on seed and epoch only."""
    n = len(windows)
    per_epoch = max(1, n // spec.batch)
    epoch, order = -1, torch.arange(n)
    for step in range(first, spec.steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(n, generator=torch.Generator().manual_seed(spec.seed * 1_000_003 + epoch))
        start = (step % per_epoch) * spec.batch
        yield windows[order[start : start + spec.batch]]


def learn_steps(
    model: Model,
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: Model | None = None,
    state: Path | None = None,
    result: Learned | None = None,
) -> Iterator[Step]:
    """Learn step by step; ``result`` (make one with :func:`start`) always holds the best prompt so far.

    ``state``: a file to save to at every validation and to resume from; a resumed run gives the same curve.
    """
    result = result or start(model, spec, tokenizer)
    if spec.kl > 0 and teacher is None:
        raise InputError("the KL objective needs the full model as teacher")
    check_context(model, spec.tokens, train.seq_len)
    device = embeddings(model).device
    windows = train.windows.to(device)
    held_out = validation.windows[: spec.validation_windows].to(device)
    result.validation_tokens = held_out.shape[0] * (held_out.shape[1] - 1)
    E = result.initial.rows.clone().to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW([E], lr=spec.lr, weight_decay=spec.weight_decay)
    first = 0
    if state is not None and state.exists():
        first = _load_state(state, E, optimizer, result, spec)
    else:
        result.best_validation = _validate(model, E, held_out, spec.batch)
    for step, ids in enumerate(_batches(windows, spec, first), first):
        began = time.perf_counter()
        lr = rate(spec, step)
        optimizer.param_groups[0]["lr"] = lr
        target = None
        if teacher is not None and spec.kl > 0:
            with torch.no_grad():
                target = teacher(input_ids=ids, use_cache=False).logits
        loss = _loss(logits_after(model, compile_rows(model, E), ids), ids, target, spec.kl)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([E], spec.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            result.stopped = f"the loss was not finite at step {step}: stopped with the best prompt so far"
            return
        optimizer.step()
        measured = None
        last = step == spec.steps - 1
        if (step + 1) % spec.evaluate_every == 0 or last:
            measured = _validate(model, E.detach(), held_out, spec.batch)
            if measured < result.best_validation:
                result.best_validation, result.best_step = measured, step + 1
                result.prefix = Prefix("soft", E.detach().float().cpu().clone(), result.initial.ids)
        record = Step(step, loss.item(), lr, time.perf_counter() - began, measured)
        result.steps.append(record)
        if measured is not None and state is not None:
            _save_state(state, E, optimizer, result, spec, step + 1)
        yield record


def start(model: Model, spec: PromptSpec, tokenizer: Tokenizer | None = None) -> Learned:
    """An empty result: the untrained prompt."""
    initial = initial_rows(model, tokenizer, spec)
    return Learned(Prefix("soft", initial.rows.clone(), initial.ids), initial)


def learn(
    model: Model,
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: Model | None = None,
    state: Path | None = None,
    progress: Progress = bar,
) -> Learned:
    """Learn a prompt to the end. An interrupt (Ctrl-C) ends it early and keeps the best."""
    result = start(model, spec, tokenizer)
    steps = learn_steps(
        model, train, validation, spec, tokenizer=tokenizer, teacher=teacher, state=state, result=result
    )
    try:
        for _ in progress(steps, total=spec.steps, label="learn"):
            pass
    except KeyboardInterrupt:
        result.stopped = f"interrupted after {len(result.steps)} steps"
    return result


def _save_state(
    path: Path, E: Tensor, optimizer: torch.optim.Optimizer, result: Learned, spec: PromptSpec, step: int
) -> None:
    tensors = {"E": E.detach().cpu(), "best": result.prefix.rows}
    tensors |= {key: value.cpu() for key, value in optimizer.state_dict()["state"][0].items()}
    metadata: dict[str, Any] = {
        "step": step,
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "spec": spec.to_json(),
        "curve": [vars(s) for s in result.steps],
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"state": json.dumps(metadata)})
    os.replace(temporary, path)


def _load_state(path: Path, E: Tensor, optimizer: torch.optim.Optimizer, result: Learned, spec: PromptSpec) -> int:
    from safetensors import safe_open

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
    except Exception as error:
        raise InputError(f"{path} is damaged; delete it to start afresh") from error
    if state["spec"] != spec.to_json():
        raise InputError(f"{path} belongs to another recipe; give another output folder or delete it")
    with torch.no_grad():
        E.copy_(tensors.pop("E"))
    result.prefix = Prefix("soft", tensors.pop("best"), result.initial.ids)
    result.best_step, result.best_validation = state["best_step"], state["best_validation"]
    result.steps[:] = [Step(**record) for record in state["curve"]]
    optimizer.load_state_dict({"state": {0: tensors}, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"]
