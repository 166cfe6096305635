"""The header: model card, prompt with its compatibility badge, device and seed; and loading more of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

import ctplab as ctp
from ctplab.app import history
from ctplab.app.bench import DEVICE, LONG, PRIVATE, Bench, Chosen, Loaded
from ctplab.app.toast import plain_errors
from ctplab.app.views import size
from ctplab.app.ways import words
from ctplab.models.known import MODELS, KnownModel


@dataclass(frozen=True)
class Header:
    """The components by which a session says what it works with."""

    full: gr.Dropdown
    compressed: gr.Dropdown
    prompt: gr.Dropdown
    seed: gr.Number
    card: gr.HTML
    row: gr.State
    """The learned row in view, or None: the same in every tab."""
    past: history.Past
    """What was done in this browser; tabs add what they start."""
    loads: list[Any]
    """Events after which the full model may be another."""
    uses: list[Any]
    """Events that choose what was made just now, to be used in Compare."""
    tabs: gr.Tabs | None = None
    """The page's tabs, for buttons that lead from one to another."""

    @property
    def chosen(self) -> list[gr.Dropdown]:
        """Inputs of every event that needs the three names."""
        return [self.full, self.compressed, self.prompt]

    @property
    def names(self) -> history.Form:
        """The same by name, for lists of what was done."""
        return {"full": self.full, "compressed": self.compressed, "prompt": self.prompt}

    def on_another_model(
        self,
        settings: Callable[..., list[Any]],
        outputs: list[Component],
        more: Sequence[Component] = (),
    ) -> None:
        """Fill ``outputs`` with ``settings(full model, *more)`` if a reader chooses or loads another full model."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, **PRIVATE}
        self.full.input(settings, [self.full, *more], outputs, **quiet)
        for event in self.loads:
            event.success(settings, [self.full, *more], outputs, **quiet)


NONE_YET = (
    '<section><h2>Compressed model</h2><div class="name">none yet</div><p>make one of the full model in the tab '
    "Compress, or load one below</p></section>"
)


def _model_html(title: str, loaded: Loaded) -> str:
    about, facts = loaded.about, []
    spec = about.get("spec") or {}
    if spec:
        parts = [f"{spec['bits']} bits a weight" if spec["bits"] else "", f"{100 * spec['sparsity']:g}% zeros"]
        facts.append(f"made from {about['base']}: {' + '.join(p for p in parts if p and p != '0% zeros')}")
        facts.append(
            f"truly {about['bits_per_weight']:.2f} bits a weight, nominally {about['nominal_bits_per_weight']:g}"
        )
        if tuned := about.get("tuned"):
            learned = f"{words(tuned['what'])} learned"
            facts.append(f"{learned} on {tuned['corpus']}" if "corpus" in tuned else learned)
        if about.get("calibrated_on"):
            facts.append(f"calibrated on {about['calibrated_on']}, {about.get('made', '')}")
    elif about.get("quant_method"):
        facts.append(f"{about['quant_method']}, {about.get('bits')} bits, made by another program")
    else:
        kind, count = about.get("model_type"), about.get("parameters")
        facts.append(", ".join([*([str(kind)] if kind else []), *([f"{count / 1e6:.2f} M weights"] if count else [])]))
    if about.get("bytes"):
        facts.append(f"{size(about['bytes'])} on disk")
    if about.get("note"):
        facts.append(about["note"])
    line = " · ".join(fact for fact in facts if fact)
    return f'<section><h2>{title}</h2><div class="name">{escape(loaded.name)}</div><p>{escape(line)}</p></section>'


def card(bench: Bench, chosen: Chosen) -> str:
    """Three boxes: the full model, the compressed one, the prompt and whether it fits."""
    full, small = bench.model(chosen.full), bench.model(chosen.compressed)
    fits, notes = bench.fit(chosen)
    badge = '<span class="badge good">✓ fits</span>' if fits else '<span class="badge bad">✗ does not fit</span>'
    badge = badge if chosen.prompt else ""  # nothing is wrong: there is just none yet
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    if chosen.prompt:
        info = bench.prompt(chosen.prompt).info
        words = f"{info.get('k', '?')} tokens of width {info.get('width', '?')}, learned on "
        words += (
            f"{info.get('corpus', 'unknown text')} through {info.get('tag', 'unknown')} · runs on {small.model.device}"
        )
        lines = f"<p>{escape(words)}</p>{lines}"
    smaller = _model_html("Compressed model", small) if small is not full else NONE_YET
    return (
        f'<div class="bench">{_model_html("Full model", full)}{smaller}'
        f'<section aria-label="Prompt and compatibility"><h2>Prompt</h2><div class="name">'
        f"{escape(chosen.prompt or 'none')} {badge}</div>{lines}</section></div>"
    )


def offered(model: KnownModel) -> str:
    """What the button of a known model says: the size of its download, as long as it is not here."""
    if model.folder.is_dir():
        return f"Load {model.name}: {model.about.split(' (')[0]}"
    return f"Get {model.name}: {model.about.split(' (')[0]}, {model.megabytes} MB, {model.licence}"


def build(bench: Bench) -> Header:
    """Lay the header out inside the current ``gr.Blocks``."""
    first = bench.chosen()
    box = gr.HTML(card(bench, first), elem_id="card")
    with gr.Accordion("Choose or load models and prompts", open=False, elem_id="choose"):
        with gr.Row():
            full = gr.Dropdown(bench.full_names(), value=first.full, label="Full model", elem_id="full")
            compressed = gr.Dropdown(
                bench.compressed_names(), value=first.compressed, label="Compressed model", elem_id="compressed"
            )
            prompt = gr.Dropdown(list(bench.prompts), value=first.prompt or None, label="Prompt", elem_id="prompt")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=90)
        with gr.Row(equal_height=True):
            source = gr.Textbox(
                label="Model folder or hub id", placeholder="runs/atlas/w3 or facebook/opt-125m", elem_id="model-source"
            )
            add_model = gr.Button("Load model", elem_id="load-model", scale=0, min_width=140)
            folder = gr.Textbox(
                label="Prompt folder", placeholder="runs/atlas/w4-s50/prompts/demo", elem_id="prompt-source"
            )
            add_prompt = gr.Button("Load prompt", elem_id="load-prompt", scale=0, min_width=140)
        with gr.Row():
            offers = {
                model: gr.Button(offered(model), elem_id=f"get-{name}", size="sm", min_width=200)
                for name, model in MODELS.items()
            }
    row = gr.State(None)
    header = Header(full, compressed, prompt, seed, box, row, history.build(), [], [])

    def redraw(full: str, compressed: str, prompt: str | None) -> str:
        with plain_errors():
            return card(bench, Chosen(full, compressed, prompt or ""))

    def load_model(source: str, full: str, prompt: str | None) -> tuple[Any, Any, Any]:
        with plain_errors():
            name = bench.load_model(source)
        whole = bench.model(name).tag == "full"
        return listed(bench, bench.companions(name)) if whole else renew(bench, full, name, prompt)

    def get(name: str) -> Any:
        def fetched(bar: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            def progress(items: Any, *, total: int | None = None, label: str = "") -> Any:
                yield from bar.tqdm(items, total=total, desc=label)

            with plain_errors():
                ctp.get_model(name, progress=progress)
                loaded = bench.load_model(name)
            gr.Info(f"{loaded} is the full model now. Next: compress it.")
            return *listed(bench, bench.companions(loaded)), offered(MODELS[name])

        return fetched

    def load_prompt(folder: str) -> Any:
        with plain_errors():
            return gr.update(choices=list(bench.prompts), value=bench.load_prompt(folder))

    for component in header.chosen:
        component.change(redraw, header.chosen, box, show_progress="hidden", queue=False, **PRIVATE)
    prompt.change(lambda: None, None, row, show_progress="hidden", queue=False, **PRIVATE)
    full.input(
        lambda name: listed(bench, bench.companions(name)), full, header.chosen, show_progress="hidden", queue=False,
        **PRIVATE,
    )  # fmt: skip
    loaded = add_model.click(load_model, [source, full, prompt], header.chosen, **DEVICE, **PRIVATE)
    header.loads.append(loaded)
    add_prompt.click(load_prompt, folder, prompt, **PRIVATE)
    for model, button in offers.items():
        got = button.click(get(model.name), None, [*header.chosen, button], **LONG, **PRIVATE)
        header.loads.append(got)
    return header


def renew(bench: Bench, full: str, compressed: str, prompt: str | None) -> tuple[Any, Any, Any]:
    """The three lists as they are now, for page loads and finished jobs; what is chosen stays chosen."""
    first = bench.chosen(full, compressed, prompt or "")
    return listed(bench, first if prompt else replace(first, prompt=bench.prompt_for(first)))


def listed(bench: Bench, first: Chosen) -> tuple[Any, Any, Any]:
    """The three lists as they are now, with what is chosen in each."""
    return (
        gr.update(choices=bench.full_names(), value=first.full),
        gr.update(choices=bench.compressed_names(), value=first.compressed),
        gr.update(choices=list(bench.prompts), value=first.prompt or None),
    )
