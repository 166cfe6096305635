"""Tab *Train*: learn a soft prompt through the frozen compressed model; live curves, stop and keep the best, resume."""

import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

import ctplab as ctp
from ctplab.app import figures
from ctplab.app.bench import DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.compress import CORPORA
from ctplab.app.header import Header, renew
from ctplab.app.jobs import Job
from ctplab.app.toast import plain_errors
from ctplab.app.views import size
from ctplab.learning.rows import start
from ctplab.show.colours import colour

PROBE = 3  # steps that the estimate really runs


def spec_of(
    tokens: float, steps: float, batch: float, lr: float, kl: float, init: str, every: float, seed: float
) -> ctp.PromptSpec:
    """The form as a spec; raises InputError for senseless values."""
    return ctp.PromptSpec(
        tokens=int(tokens), steps=int(steps), batch=int(batch), lr=lr, warmup=min(20, int(steps) // 5), kl=kl,
        init=init, evaluate_every=int(every), seed=int(seed or 0),
    )  # fmt: skip


def texts(bench: Bench, chosen: Chosen, corpus: str, seq_len: int) -> ctp.Corpus:
    """The corpus as the compressed model reads it."""
    return ctp.corpus(corpus, bench.model(chosen.compressed).tokenizer, seq_len)


def peak_bytes() -> int:
    """The most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def estimate(bench: Bench, chosen: Chosen, spec: ctp.PromptSpec, corpus: str, seq_len: int) -> str:
    """Estimate time and memory from a few real steps, in words."""
    small, teacher = bench.model(chosen.compressed), bench.model(chosen.full).model if spec.kl else None
    text = texts(bench, chosen, corpus, seq_len)
    with bench.turns.turn():
        steps = ctp.learn_steps(
            small.model, text.train, text.validation, spec, tokenizer=small.tokenizer, teacher=teacher
        )
        began = time.perf_counter()
        seconds = [step.seconds for step, _ in zip(steps, range(PROBE), strict=False)]
        ready = time.perf_counter() - began - sum(seconds)
        steps.close()  # type: ignore[attr-defined]
    checks = 1 + spec.steps // spec.evaluate_every
    total = min(seconds) * spec.steps + ready * checks
    return (
        f"About **{total:.0f} s** ({min(seconds):.2f} s a step, {ready:.1f} s for each of {checks} validations), from "
        f"{len(seconds)} real steps. Memory of the whole server so far, these steps included: {size(peak_bytes())}."
    )


def begin(bench: Bench, chosen: Chosen, name: str, spec: ctp.PromptSpec, corpus: str, seq_len: int) -> Job:
    """Queue the learning of a prompt called ``name``; unfinished work of the same recipe is taken up again."""
    small, full = bench.model(chosen.compressed), bench.model(chosen.full)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ctp.InputError("give the prompt a name of letters, digits, '-', '_' and '.'")
    store = bench.store(chosen)
    out, state = store.prompt(small.name, name), store.prompt_state(small.name, name)
    if (out / "prompt.json").exists() and not state.exists():
        raise ctp.InputError(f"a finished prompt called {name!r} exists in {out}: choose another name")

    def work(job: Job) -> None:
        job.total, job.note = spec.steps, f"reading {corpus}"
        text = texts(bench, chosen, corpus, seq_len)
        result = start(small.model, spec, small.tokenizer)
        steps = ctp.learn_steps(
            small.model, text.train, text.validation, spec, tokenizer=small.tokenizer,
            teacher=full.model if spec.kl else None, state=state, result=result,
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.json").write_text(json.dumps({"spec": spec.to_json(), "corpus": corpus, "seq_len": seq_len}))
        while True:
            with bench.turns.turn():
                step = next(steps, None)
            if step is None:
                break
            if not job.points:  # resumed: the curve so far
                job.points = [(s.step, s.loss, s.validation) for s in result.steps[:-1]]
                job.first = len(job.points)
            job.points.append((step.step, step.loss, step.validation))
            job.done, job.note = step.step + 1, f"best validation {result.best_validation:.3f} at {result.best_step}"
            if job.cancel.is_set() and job.done < spec.steps:
                result.stopped = f"stopped by hand after {job.done} steps"
                break
        steps.close()  # type: ignore[attr-defined]
        ctp.save_prompt(
            result, out, spec, small.model, small.tokenizer, base=small.about.get("base", full.name), tag=small.tag,
            corpus=corpus, corpus_fingerprint=text.train.fingerprint, seq_len=seq_len,
        )  # fmt: skip
        if not result.stopped:
            state.unlink(missing_ok=True)
        job.result["name"] = bench.load_prompt(str(out))
        job.note = f"{result.stopped + '; ' if result.stopped else ''}{job.note}, kept as {job.result['name']}"

    return bench.jobs.start("train", f"learn {name} through {small.name}", work)


def curves(points: list[tuple[int, float, float | None]]) -> go.Figure:
    """Training loss of every step, and validation NLL at the steps at which it was measured.

    ``points``: (step, loss, validation or None).
    """
    if not points:
        return figures.note(360, "Curves appear with the first step.")
    figure = figures.blank(360, "step", "loss, nats a token")
    steps = [step + 1 for step, _, _ in points]
    figure.add_scatter(
        x=steps, y=[loss for _, loss, _ in points], mode="lines", name="training loss",
        line={"color": figures.GREY, "width": 1.5},
    )  # fmt: skip
    measured = [(step + 1, value) for step, _, value in points if value is not None]
    figure.add_scatter(
        x=[step for step, _ in measured], y=[value for _, value in measured], mode="lines+markers",
        name="validation NLL", line={"color": colour("soft"), "width": 2.5},
    )  # fmt: skip
    return figure


def unfinished(runs: Path) -> str:
    """What could be resumed, as a line of text."""
    found = sorted(str(path.parent.relative_to(runs)) for path in runs.glob("*/*/prompts/*/state.safetensors"))
    return f"To resume, give the name and the settings again: {', '.join(found)}" if found else ""


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    gr.Markdown(
        "A soft prompt is learned through the header's compressed model, whose weights stay as they are. KL pulls its "
        "predictions towards the full model's; the rest of the weight is the next-token loss."
    )
    with gr.Row():
        name = gr.Textbox("mine", label="Name", elem_id="train-name", min_width=120)
        corpus = gr.Dropdown(
            CORPORA, value="atlas-web", allow_custom_value=True, label="Text", info="or file:PATH", min_width=140
        )
        tokens = gr.Number(32, label="Tokens (k)", precision=0, minimum=1, elem_id="train-tokens", min_width=90)
        steps = gr.Number(200, label="Steps", precision=0, minimum=1, elem_id="train-steps", min_width=90)
        batch = gr.Number(16, label="Batch", precision=0, minimum=1, elem_id="train-batch", min_width=90)
    with gr.Row():
        lr = gr.Number(0.1, label="Learning rate", minimum=0, min_width=90)
        kl = gr.Slider(0, 1, 1, step=0.1, label="Weight of the KL to the full model", min_width=160)
        init = gr.Dropdown(["vocab-random", "vocab-first"], value="vocab-random", label="Start from", min_width=140)
        every = gr.Number(20, label="Validate every", precision=0, minimum=1, elem_id="train-every", min_width=90)
        seq_len = gr.Number(128, label="Tokens a window", precision=0, minimum=2, min_width=90)
    with gr.Row():
        go_button = gr.Button("Train", variant="primary", elem_id="train")
        stop = gr.Button("Stop and keep the best", elem_id="train-stop")
        guess = gr.Button("Estimate time and memory", elem_id="train-estimate")
        use = gr.Button("Use it in Compare", elem_id="train-use")
    told = gr.Markdown(elem_id="train-told")
    status = gr.HTML(elem_id="train-job")
    plot = gr.Plot(curves([]), label="Training and validation loss", elem_id="curves")
    shown = gr.State(None)
    recipe = [tokens, steps, batch, lr, kl, init, every, header.seed]

    def run(full: str, compressed: str, name: str, corpus: str, seq_len: float, *settings: Any) -> str:
        with plain_errors():
            spec = spec_of(*settings)
            return begin(bench, Chosen(full, compressed, ""), name.strip(), spec, corpus, int(seq_len)).html()

    def probe(full: str, compressed: str, corpus: str, seq_len: float, *settings: Any) -> str:
        with plain_errors():
            return estimate(bench, Chosen(full, compressed, ""), spec_of(*settings), corpus, int(seq_len))

    def poll(shown: Any, full: str, compressed: str, prompt: str | None) -> list[Any]:
        job = bench.jobs.latest("train")
        if job is None or job.version == shown:
            return [gr.skip()] * 6
        finished = renew(bench, full, compressed, prompt) if job.state == "done" else (gr.skip(),) * 3
        return [job.html(), curves(list(job.points)), job.version, *finished]

    def stopped() -> None:
        job = bench.jobs.latest("train")
        if job is None or not job.active:
            raise gr.Error("Nothing is being trained.")
        job.cancel.set()

    def chosen() -> Any:
        job = bench.jobs.latest("train")
        if job is None or "name" not in job.result:
            raise gr.Error("No prompt was trained yet.")
        return gr.update(choices=list(bench.prompts), value=job.result["name"])

    go_button.click(run, [header.full, header.compressed, name, corpus, seq_len, *recipe], status, **PRIVATE)
    guess.click(probe, [header.full, header.compressed, corpus, seq_len, *recipe], told, **DEVICE, **PRIVATE)
    gr.Timer(1.0).tick(
        poll, [shown, *header.chosen], [status, plot, shown, *header.chosen], queue=False, show_progress="hidden",
        **PRIVATE,
    )  # fmt: skip
    stop.click(stopped, queue=False, **PRIVATE)
    use.click(chosen, None, header.prompt, queue=False, **PRIVATE)
    tab.select(lambda: unfinished(bench.runs), None, told, queue=False, show_progress="hidden", **PRIVATE)
