"""Tab *Train*: learn a prompt, scales or norms for the compressed model; live curves, stop and keep the best, resume.

The work itself is in ``learner.py``, what can be learned in ``ways.py``, the figures in ``curves.py``.
"""

from typing import Any

import gradio as gr

from ctplab.app import beforehand, curves, limits, recipes
from ctplab.app.bench import LONG, PRIVATE, Bench, Chosen
from ctplab.app.compress import CORPORA
from ctplab.app.guard import owner
from ctplab.app.header import Header, renew
from ctplab.app.history import QUIET, Form
from ctplab.app.learner import begin, suggested, unfinished, wanted_of
from ctplab.app.share import lead
from ctplab.app.suited import suited, train_values
from ctplab.app.toast import plain_errors
from ctplab.app.ways import NAMES, words
from ctplab.formats.tuned import SOFT


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    first = suited(bench, bench.chosen().full)
    gr.Markdown(
        "A **prompt** is learned through the header's compressed model, whose weights stay as they are; it takes "
        "positions of every input. **Scales and norms** change the model, at no cost: masks and bytes stay, and "
        "the tuned model is saved beside the one before. KL pulls the predictions towards the full model's; the rest "
        "of the weight is the next-token loss."
    )
    with gr.Row():
        what = gr.CheckboxGroup(
            [(name, kind) for kind, name in NAMES.items()], value=[SOFT], label="What is learned", elem_id="train-what",
            info="codes: every weight's, in 25 bytes of memory each; low-rank: a few numbers a row and column "
            "instead", min_width=320, scale=2,
        )  # fmt: skip
        tokens = gr.Number(
            32, label="Tokens (k)", info="of the prompt", precision=0, minimum=1, elem_id="train-tokens", min_width=110
        )
        init = gr.Dropdown(
            ["vocab-random", "vocab-first"], value="vocab-random", label="Start from", info="rows of the vocabulary",
            min_width=190, elem_id="train-init",
        )  # fmt: skip
        rank = gr.Number(
            8, label="Rank", info="of the updates", precision=0, minimum=1, elem_id="train-rank", min_width=110,
            visible=False,
        )  # fmt: skip
    with gr.Row():
        name = gr.Textbox(
            label="Name", placeholder="what is learned, text and date", elem_id="train-name", min_width=200, scale=2
        )
        corpus = gr.Dropdown(
            CORPORA, value=first.corpus, allow_custom_value=True, label="Text (or file:PATH)", min_width=180,
            elem_id="train-corpus",
        )  # fmt: skip
        steps = gr.Number(first.steps, label="Steps", precision=0, minimum=1, elem_id="train-steps", min_width=90)
        batch = gr.Number(first.batch, label="Batch", precision=0, minimum=1, elem_id="train-batch", min_width=90)
        seq_len = gr.Number(first.seq_len, label="Tokens a window", precision=0, minimum=2, min_width=90)
    with gr.Row():
        lr = gr.Number(first.lr, label="Learning rate", minimum=0, elem_id="train-lr", min_width=90)
        kl = gr.Slider(0, 1, first.kl, step=0.1, label="Weight of the KL to the full model", min_width=240)
        every = gr.Number(
            first.every, label="Validate every", precision=0, minimum=1, elem_id="train-every", min_width=90
        )
    watched = gr.Textbox("Where is Long Beach?", label="Question to watch while it learns", elem_id="train-watched")
    with gr.Row():
        go_button = gr.Button("Train", variant="primary", elem_id="train")
        stop = gr.Button("Stop and keep the best", elem_id="train-stop")
        guess = gr.Button("Estimate size and time", elem_id="train-estimate")
        use = gr.Button("Next: use it in Compare →", elem_id="train-use")
    named: Form = {
        "what": what, "rank": rank, "corpus": corpus, "seq_len": seq_len, "tokens": tokens, "steps": steps,
        "batch": batch, "lr": lr, "kl": kl, "init": init, "every": every, "seed": header.seed,
    }  # fmt: skip
    form = list(named.values())
    recipes.offer(tab, lambda: recipes.trained(bench.runs), recipes.train_form, form, "train-again", PRIVATE)
    told = gr.Markdown(elem_id="train-told")
    status = gr.HTML(elem_id="train-job")
    plot = gr.Plot(curves.curves([], {}, 0), label="Validation and objective", elem_id="curves")
    says = gr.HTML(elem_id="train-says")
    shown = gr.State(None)

    def run(request: gr.Request, full: str, compressed: str, name: str, question: str, *settings: Any) -> str:
        with plain_errors():
            wanted = wanted_of(*settings)
            name = name.strip() or suggested(wanted.short, wanted.corpus)
            question = limits.text(question or "", "question to watch", 500)
            return begin(bench, Chosen(full, compressed, ""), name, wanted, owner(request), question).html()

    def probe(full: str, compressed: str, *settings: Any) -> str:
        with plain_errors():
            return beforehand.training(bench, Chosen(full, compressed, ""), wanted_of(*settings))

    def poll(request: gr.Request, shown: Any, full: str, compressed: str, prompt: str | None) -> list[Any]:
        job = bench.jobs.latest("train", owner(request))
        now = None if job is None else job.version  # before anything is drawn: what comes later is the next look's
        if job is None or now == shown:
            return [gr.skip()] * 7
        finished = renew(bench, full, compressed, prompt) if job.state == "done" else (gr.skip(),) * 3
        drawn = curves.curves(list(job.points), job.baselines, job.total)  # it goes on while this is drawn
        return [job.html(owner(request)), drawn, curves.told(job), now, *finished]

    def stopped(request: gr.Request) -> None:
        with plain_errors():
            bench.jobs.mine("train", owner(request)).cancel.set()

    def chosen(request: gr.Request, full: str, compressed: str, prompt: str | None) -> list[Any]:
        done = bench.jobs.done("train", owner(request))
        if not done:
            raise gr.Error("You have trained nothing yet: press Train, and wait until it is done.")
        names = done[0].result["names"]
        small = names.get("compressed", compressed)
        prompt = names.get("prompt") or bench.prompt_for(Chosen(full, small, prompt or ""))
        gr.Info("; ".join(f"{name} is the {'prompt' if kind == 'prompt' else 'compressed model'} now" for kind, name in
                          names.items()))  # fmt: skip
        return [
            gr.update(choices=bench.compressed_names(), value=small),
            gr.update(choices=list(bench.prompts), value=prompt or None),
        ]

    def fields(what: list[str]) -> list[Any]:
        """Only what the choice asks for is on the page."""
        of_prompt, of_updates = SOFT in what, "low-rank" in what
        return [gr.update(visible=of_prompt), gr.update(visible=of_prompt), gr.update(visible=of_updates)]

    def settings(model: str, what: list[str]) -> list[Any]:
        return train_values(suited(bench, model), what)

    started = go_button.click(run, [header.full, header.compressed, name, watched, *form], status, **PRIVATE)
    models = {"full": header.full, "compressed": header.compressed}
    header.past.record(
        started, "train", "train", {**named, **models, "watched": watched},
        lambda told: f"{words(told['what'])}, {told['steps']} steps on {told['corpus']}",
    )  # fmt: skip
    what.change(fields, what, [tokens, init, rank], **QUIET)
    what.input(
        lambda what, full: suited(bench, full).rate(what), [what, header.full], lr, trigger_mode="always_last", **QUIET
    )
    header.on_another_model(settings, [corpus, seq_len, steps, batch, every, lr, kl], [what])
    guess.click(probe, [header.full, header.compressed, *form], told, **LONG, **PRIVATE)
    gr.Timer(2.0).tick(
        poll, [shown, *header.chosen], [status, plot, says, shown, *header.chosen], queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    stop.click(stopped, **PRIVATE)
    used = use.click(chosen, header.chosen, [header.compressed, header.prompt], **PRIVATE)
    header.uses.append(used)
    lead(used, header.tabs, "compare")
    tab.select(lambda: unfinished(bench.runs), None, told, **QUIET)
