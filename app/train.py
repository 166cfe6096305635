"""Tab *Train*: learn a soft prompt through the frozen compressed model; live curves, stop and keep the best, resume.

The work itself is in ``learner.py``, the figures in ``curves.py``.
"""

import time
from pathlib import Path
from typing import Any

import gradio as gr

from ctplab.app import curves, limits, recipes
from ctplab.app.bench import LONG, PRIVATE, Bench, Chosen
from ctplab.app.compress import CORPORA
from ctplab.app.guard import owner
from ctplab.app.header import Header, renew
from ctplab.app.history import Form
from ctplab.app.learner import begin, estimate, spec_of
from ctplab.app.share import lead
from ctplab.app.suited import suited, train_values
from ctplab.app.toast import plain_errors


def unfinished(runs: Path) -> str:
    """What could be resumed, as a line of text."""
    found = sorted(str(path.parent.relative_to(runs)) for path in runs.glob("*/*/prompts/*/state.safetensors"))
    return f"To resume, give the name and the settings again: {', '.join(found)}" if found else ""


def suggested(tokens: float, corpus: str) -> str:
    """A name that says how long the prompt is, on what it is learned, and when."""
    return f"k{int(tokens or 0)}-{corpus.split(':')[-1].split('/')[-1][:20]}-{time.strftime('%d%b-%H%M').lower()}"


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    first = suited(bench, bench.chosen().full)
    gr.Markdown(
        "A soft prompt is learned through the header's compressed model, whose weights stay as they are. KL pulls its "
        "predictions towards the full model's; the rest of the weight is the next-token loss."
    )
    with gr.Row():
        name = gr.Textbox(lambda: suggested(32, first.corpus), label="Name", elem_id="train-name", min_width=120)
        corpus = gr.Dropdown(
            CORPORA, value=first.corpus, allow_custom_value=True, label="Text", info="or file:PATH",
            min_width=140, elem_id="train-corpus",
        )  # fmt: skip
        tokens = gr.Number(32, label="Tokens (k)", precision=0, minimum=1, elem_id="train-tokens", min_width=90)
        steps = gr.Number(first.steps, label="Steps", precision=0, minimum=1, elem_id="train-steps", min_width=90)
        batch = gr.Number(first.batch, label="Batch", precision=0, minimum=1, elem_id="train-batch", min_width=90)
    with gr.Row():
        lr = gr.Number(first.lr, label="Learning rate", minimum=0, min_width=90)
        kl = gr.Slider(0, 1, first.kl, step=0.1, label="Weight of the KL to the full model", min_width=240)
        init = gr.Dropdown(["vocab-random", "vocab-first"], value="vocab-random", label="Start from", min_width=190)
        every = gr.Number(
            first.every, label="Validate every", precision=0, minimum=1, elem_id="train-every", min_width=90
        )
        seq_len = gr.Number(first.seq_len, label="Tokens a window", precision=0, minimum=2, min_width=90)
    watched = gr.Textbox("Where is Long Beach?", label="Question to watch while it learns", elem_id="train-watched")
    with gr.Row():
        go_button = gr.Button("Train", variant="primary", elem_id="train")
        stop = gr.Button("Stop and keep the best", elem_id="train-stop")
        guess = gr.Button("Estimate time and memory", elem_id="train-estimate")
        use = gr.Button("Next: use it in Compare →", elem_id="train-use")
    named: Form = {
        "corpus": corpus, "seq_len": seq_len, "tokens": tokens, "steps": steps, "batch": batch, "lr": lr, "kl": kl,
        "init": init, "every": every, "seed": header.seed,
    }  # fmt: skip
    form = list(named.values())
    recipes.offer(tab, lambda: recipes.trained(bench.runs), recipes.train_form, form, "train-again", PRIVATE)
    told = gr.Markdown(elem_id="train-told")
    status = gr.HTML(elem_id="train-job")
    plot = gr.Plot(curves.curves(None), label="Validation between the two models, and the objective", elem_id="curves")
    says = gr.HTML(elem_id="train-says")
    shown = gr.State(None)
    recipe = form[2:]

    def run(
        request: gr.Request, full: str, compressed: str, name: str, corpus: str, seq_len: float, *settings: Any
    ) -> str:
        *numbers, question = settings if len(settings) > len(recipe) else (*settings, "")
        with plain_errors():
            spec = spec_of(*numbers)
            name = name.strip() or suggested(spec.tokens, corpus)
            question = limits.text(question or "", "question to watch", 500)
            chosen = Chosen(full, compressed, "")
            return begin(bench, chosen, name, spec, corpus, seq_len, owner(request), question).html()

    def probe(full: str, compressed: str, corpus: str, seq_len: float, *settings: Any) -> str:
        with plain_errors():
            return estimate(bench, Chosen(full, compressed, ""), spec_of(*settings), corpus, seq_len)

    def poll(request: gr.Request, shown: Any, full: str, compressed: str, prompt: str | None) -> list[Any]:
        job = bench.jobs.latest("train", owner(request))
        if job is None or job.version == shown:
            return [gr.skip()] * 7
        finished = renew(bench, full, compressed, prompt) if job.state == "done" else (gr.skip(),) * 3
        return [job.html(owner(request)), curves.curves(job), curves.told(job), job.version, *finished]

    def stopped(request: gr.Request) -> None:
        with plain_errors():
            bench.jobs.mine("train", owner(request)).cancel.set()

    def chosen(request: gr.Request) -> Any:
        done = bench.jobs.done("train", owner(request))
        if not done:
            raise gr.Error("You have trained nothing yet: press Train, and wait until it is done.")
        gr.Info(f"{done[0].result['name']} is the prompt now.")
        return gr.update(choices=list(bench.prompts), value=done[0].result["name"])

    started = go_button.click(
        run, [header.full, header.compressed, name, corpus, seq_len, *recipe, watched], status, **PRIVATE
    )
    models = {"full": header.full, "compressed": header.compressed}
    header.past.record(
        started, "train", "train", {**named, **models, "watched": watched},
        lambda told: f"{told['tokens']} tokens, {told['steps']} steps on {told['corpus']}",
    )  # fmt: skip

    def settings(model: str) -> list[Any]:
        found = suited(bench, model)
        return [suggested(32, found.corpus), *train_values(found)]

    header.on_another_model(settings, [name, corpus, seq_len, steps, batch, every, lr, kl])
    guess.click(probe, [header.full, header.compressed, corpus, seq_len, *recipe], told, **LONG, **PRIVATE)
    gr.Timer(2.0).tick(
        poll, [shown, *header.chosen], [status, plot, says, shown, *header.chosen], queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    stop.click(stopped, **PRIVATE)
    used = use.click(chosen, None, header.prompt, **PRIVATE)
    header.uses.append(used)
    lead(used, header.tabs, "compare")
    tab.select(lambda: unfinished(bench.runs), None, told, queue=False, show_progress="hidden", **PRIVATE)
