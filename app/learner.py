"""Learning as a job of the server: what the tab *Train* starts and stops, whatever is learned."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench, Chosen
from ctplab.app.jobs import Job
from ctplab.app.ways import Lesson, Wanted, check_weights, lesson, way
from ctplab.atlas.questions import FORM
from ctplab.disk import write_json
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.tuned import KINDS, SOFT
from ctplab.learning import schedule
from ctplab.text.chat import has_template


def wanted_of(
    what: Sequence[str],
    rank: float,
    corpus: str,
    seq_len: Any,
    tokens: float,
    steps: float,
    batch: float,
    lr: float,
    kl: float,
    init: str,
    every: float,
    seed: float,
) -> Wanted:
    """The form as what is wanted; raises InputError for senseless values. What the choice does not ask for is left."""
    chosen = limits.some_of(what, "what is learned", (*KINDS, SOFT))
    rows: dict[str, Any] = {}
    if SOFT in chosen:
        starts = ("vocab-random", "vocab-first")
        rows = {"tokens": limits.whole(tokens, "tokens", 1, 1024), "init": limits.one_of(init, "start from", starts)}
    n = limits.whole(steps, "steps", 1, 200_000)
    spec = ctp.PromptSpec(
        **rows,
        steps=n,
        batch=limits.whole(batch, "batch", 1, 256),
        lr=limits.number(lr, "learning rate", 1e-8, 10),
        warmup=min(20, n // 5),
        kl=limits.number(kl, "weight of the KL", 0, 1),
        evaluate_every=limits.whole(every, "validate every", 1, 200_000),
        seed=limits.whole(seed or 0, "seed", 0, 2**31 - 1),
    )
    low_rank = limits.whole(rank, "rank", 1, 256) if "low-rank" in chosen else Wanted.rank
    return Wanted(chosen, spec, limits.text(corpus, "text", 2000).strip(), seq_len, low_rank)


def suggested(wanted_short: str, corpus: str) -> str:
    """A name that says what is learned, on what, and when."""
    return f"{wanted_short}-{corpus.split(':')[-1].split('/')[-1][:20]}-{time.strftime('%d%b-%H%M').lower()}"


def places(bench: Bench, chosen: Chosen, wanted: Wanted, name: str) -> tuple[Path, Path, Path, Path]:
    """Where a learning of this name lies: its folder, the file that completes it, its state, and its recipe."""
    store = bench.store(chosen)
    if not wanted.kinds:
        out = store.prompt(chosen.compressed, name)
        return out, out / "prompt.json", store.prompt_state(chosen.compressed, name), out / "recipe.json"
    out = store.tuned(chosen.compressed, name)
    beside = [out.with_name(f"{out.name}.{end}") for end in ("state.safetensors", "recipe.json")]
    return out, out / MANIFEST, beside[0], beside[1]


def keep_recipe(wanted: Wanted, path: Path) -> None:
    """Write what ``recipes.train_form`` reads."""
    said = {"what": list(wanted.what), "rank": wanted.rank, "corpus": wanted.corpus, "seq_len": wanted.seq_len}
    write_json({"spec": wanted.spec.to_json(), **said}, path)


def unfinished(runs: Path) -> str:
    """What could be resumed, as a line of text."""
    prompts = [path.parent for path in runs.glob("*/*/prompts/*/state.safetensors")]
    tuned = [path.with_name(path.name.removesuffix(".state.safetensors"))
             for path in runs.glob("*/*/tuned/*.state.safetensors")]  # fmt: skip
    found = sorted(str(path.relative_to(runs)) for path in (*prompts, *tuned))
    return f"To resume, give the name and the settings again: {', '.join(found)}" if found else ""


def begin(bench: Bench, chosen: Chosen, name: str, wanted: Wanted, owner: str = "", watched: str = "") -> Job:
    """Queue the learning of what is ``wanted`` under a name; unfinished work of the same recipe is taken up again.

    ``watched``: a question whose answer is kept at every validation.
    """
    small, _ = bench.model(chosen.compressed), bench.model(chosen.full)
    name = limits.name(name, f"the {'model' if wanted.kinds else 'prompt'}")
    bench.places.check_corpus(wanted.corpus)
    check_weights(small, wanted)
    if wanted.kinds:
        bench.check_room()  # what will be learned is a model of its own
    out, complete, state, recipe = places(bench, chosen, wanted, name)
    if complete.exists() and not state.exists():
        what = "tuned model" if wanted.kinds else "prompt"
        raise ctp.InputError(f"a finished {what} called {name!r} exists in {out}: choose another name")

    def work(job: Job) -> None:
        job.total, job.note = wanted.spec.steps, f"reading {wanted.corpus}"
        job.result.update(watched=watched, words=wanted.words)
        given = lesson(bench, chosen, wanted)
        with bench.turns.turn():
            learning = way(bench, given, state, out)
        keep_recipe(wanted, recipe)
        try:
            _baselines(bench, job, given)
            _steps(bench, job, learning, watched)
            with bench.turns.turn():
                learning.save(out, job.baselines)
        finally:
            learning.close()
        result = learning.result
        if not result.stopped:
            state.unlink(missing_ok=True)
        names = learning.names(bench, out)
        job.result.update(warnings=result.warnings, folder=str(out), names=names)
        kept = f"{job.note}, kept as {next(iter(names.values()))}"
        job.note = "; ".join([*filter(None, [result.stopped]), kept, *result.warnings])

    return bench.jobs.start("train", f"learn {name} through {small.name}", work, owner)


def _steps(bench: Bench, job: Job, learning: Any, watched: str) -> None:
    """Take the steps in turn with everybody else, until they end or somebody stops them."""
    result, total = learning.result, job.total
    while not job.cancel.is_set() or not job.points:
        with bench.turns.turn():
            step = next(learning.steps, None)
            if step is None:
                break
            if not job.points:  # resumed: the curve so far
                job.points = [(s.step, s.loss, s.validation) for s in result.steps[:-1]]
                job.first = len(job.points)
            if watched.strip() and (step.validation is not None or not job.said):
                job.said.append((step.step + 1, _answer(learning.arm(), learning.lesson.small.tokenizer, watched)))
        job.points.append((step.step, step.loss, step.validation))
        job.done, job.note = step.step + 1, f"best validation {result.best_validation:.3f} at {result.best_step}"
    if job.done < total and not result.stopped:
        result.stopped = f"stopped by hand after {job.done} steps"


def _baselines(bench: Bench, job: Job, given: Lesson) -> None:
    """What both models reach on the validation windows before anything is learned: the ends of the gap."""
    train, validation, spec = given.text.train, given.text.validation, given.wanted.spec
    windows = schedule.validations(spec, len(train.windows), len(validation.windows)).windows
    for arm in ctp.arms(given.full.model, given.small.model):
        with bench.turns.turn():
            job.baselines[arm.name] = ctp.perplexity(arm, validation, limit=windows).mean


def _answer(arm: ctp.Arm, tokenizer: Any, question: str) -> str:
    """What the arm answers, greedily."""
    chats = has_template(tokenizer)
    text = question.strip() if chats else FORM.format(question=question.strip())
    try:
        found = ctp.generate(arm, tokenizer, [text], max_new_tokens=24, stop=None if chats else "\n")[0]
    except ctp.InputError as error:
        return f"({error})"
    return found.text.strip()
