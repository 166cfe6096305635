"""Learning a prompt as a job of the server: what the tab *Train* starts, estimates and stops."""

import resource
import sys
import time
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench, Chosen
from ctplab.app.jobs import Job
from ctplab.app.views import size
from ctplab.atlas.questions import FORM
from ctplab.disk import write_json
from ctplab.learning import schedule
from ctplab.learning.rows import start
from ctplab.text.chat import has_template

PROBE = 3  # steps that the estimate really runs


def spec_of(
    tokens: float, steps: float, batch: float, lr: float, kl: float, init: str, every: float, seed: float
) -> ctp.PromptSpec:
    """The form as a spec; raises InputError for senseless values."""
    n = limits.whole(steps, "steps", 1, 200_000)
    return ctp.PromptSpec(
        tokens=limits.whole(tokens, "tokens", 1, 1024),
        steps=n,
        batch=limits.whole(batch, "batch", 1, 256),
        lr=limits.number(lr, "learning rate", 1e-8, 10),
        warmup=min(20, n // 5),
        kl=limits.number(kl, "weight of the KL", 0, 1),
        init=limits.one_of(init, "start from", ("vocab-random", "vocab-first")),
        evaluate_every=limits.whole(every, "validate every", 1, 200_000),
        seed=limits.whole(seed or 0, "seed", 0, 2**31 - 1),
    )


def texts(bench: Bench, chosen: Chosen, corpus: str, seq_len: Any, spec: ctp.PromptSpec) -> ctp.Corpus:
    """The corpus as the compressed model reads it. Raises InputError if a step would take too many tokens."""
    found = bench.corpus(corpus, bench.model(chosen.compressed).tokenizer, seq_len)
    limits.whole(spec.batch * found.seq_len, "batch x tokens a window", 2, 2**17)
    return found


def peak_bytes() -> int:
    """The most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def estimate(bench: Bench, chosen: Chosen, spec: ctp.PromptSpec, corpus: str, seq_len: Any) -> str:
    """Estimate time and memory from a few real steps, in words."""
    small, teacher = bench.model(chosen.compressed), bench.model(chosen.full).model if spec.kl else None
    seconds: list[float] = []
    text = texts(bench, chosen, corpus, seq_len, spec)
    _ = text.train.windows, text.validation.windows  # read now, while others use the device
    with bench.turns.turn():
        steps = ctp.learn_steps(
            small.model, text.train, text.validation, spec, tokenizer=small.tokenizer, teacher=teacher
        )
        began = time.perf_counter()
        seconds.append(next(steps).seconds)
    while len(seconds) < PROBE:
        with bench.turns.turn():
            step = next(steps, None)
        if step is None:
            break
        seconds.append(step.seconds)
    ready = max(0.0, time.perf_counter() - began - sum(seconds))
    steps.close()  # type: ignore[attr-defined]
    checks = 1 + spec.steps // (spec.evaluate_every or spec.steps)
    total = min(seconds) * spec.steps + ready * checks
    return (
        f"About **{total:.0f} s** ({min(seconds):.2f} s a step, {ready:.1f} s for each of {checks} validations), from "
        f"{len(seconds)} real steps. Memory of the whole server so far, these steps included: {size(peak_bytes())}."
    )


def begin(
    bench: Bench,
    chosen: Chosen,
    name: str,
    spec: ctp.PromptSpec,
    corpus: str,
    seq_len: Any,
    owner: str = "",
    watched: str = "",
) -> Job:
    """Queue the learning of a prompt called ``name``; unfinished work of the same recipe is taken up again.

    ``watched``: a question whose answer is kept at every validation.
    """
    small, full = bench.model(chosen.compressed), bench.model(chosen.full)
    name = limits.name(name, "the prompt")
    bench.places.check_corpus(limits.text(corpus, "text", 2000))
    store = bench.store(chosen)
    out, state = store.prompt(small.name, name), store.prompt_state(small.name, name)
    if (out / "prompt.json").exists() and not state.exists():
        raise ctp.InputError(f"a finished prompt called {name!r} exists in {out}: choose another name")

    def work(job: Job) -> None:
        job.total, job.note, job.result["watched"] = spec.steps, f"reading {corpus}", watched
        text = texts(bench, chosen, corpus, seq_len, spec)
        _ = text.train.windows, text.validation.windows  # read now, while others use the device
        with bench.turns.turn():
            result = start(small.model, spec, small.tokenizer)
            steps = ctp.learn_steps(
                small.model, text.train, text.validation, spec, tokenizer=small.tokenizer,
                teacher=full.model if spec.kl else None, state=state, result=result,
            )  # fmt: skip
        recipe = {"spec": spec.to_json(), "corpus": corpus, "seq_len": seq_len}
        write_json(recipe, out / "recipe.json")
        _baselines(bench, job, full.model, small.model, text, spec)
        while not job.cancel.is_set() or not job.points:
            with bench.turns.turn():
                step = next(steps, None)
                if step is None:
                    break
                if not job.points:  # resumed: the curve so far
                    job.points = [(s.step, s.loss, s.validation) for s in result.steps[:-1]]
                    job.first = len(job.points)
                if watched.strip() and (step.validation is not None or not job.said):
                    job.said.append((step.step + 1, _answer(small, result.prefix, watched)))
            job.points.append((step.step, step.loss, step.validation))
            job.done, job.note = step.step + 1, f"best validation {result.best_validation:.3f} at {result.best_step}"
        if job.done < spec.steps and not result.stopped:
            result.stopped = f"stopped by hand after {job.done} steps"
        steps.close()  # type: ignore[attr-defined]
        ctp.save_prompt(
            result, out, spec, small.model, small.tokenizer, base=small.about.get("base", full.name), tag=small.tag,
            corpus=corpus, corpus_fingerprint=text.train.fingerprint, seq_len=text.seq_len, weights=small.name,
            validation_baselines=job.baselines,
        )  # fmt: skip
        if not result.stopped:
            state.unlink(missing_ok=True)
        job.result["warnings"] = result.warnings
        job.result["name"] = bench.load_prompt(str(out))
        kept = f"{job.note}, kept as {job.result['name']}"
        job.note = "; ".join([*filter(None, [result.stopped]), kept, *result.warnings])

    return bench.jobs.start("train", f"learn {name} through {small.name}", work, owner)


def _baselines(bench: Bench, job: Job, full: Any, small: Any, text: ctp.Corpus, spec: ctp.PromptSpec) -> None:
    """What the full and the unprompted model reach on the validation windows: the ends of the gap."""
    windows = schedule.validations(spec, len(text.train.windows), len(text.validation.windows)).windows
    for arm in ctp.arms(full, small):
        with bench.turns.turn():
            job.baselines[arm.name] = ctp.perplexity(arm, text.validation, limit=windows).mean


def _answer(small: Any, prefix: ctp.Prefix, question: str) -> str:
    """What the model answers behind the prompt so far, greedily."""
    chats = has_template(small.tokenizer)
    text = question.strip() if chats else FORM.format(question=question.strip())
    arm = ctp.Arm("soft", small.model, prefix)
    try:
        found = ctp.generate(arm, small.tokenizer, [text], max_new_tokens=24, stop=None if chats else "\n")[0]
    except ctp.InputError as error:
        return f"({error})"
    return found.text.strip()
