"""Tab *Compress*: GPTQ, SparseGPT or both on a loaded model, with progress, a report by layer, and true bytes."""

import time
from pathlib import Path
from typing import Any

import gradio as gr

import ctplab as ctp
from ctplab.app import limits, recipes
from ctplab.app.beforehand import expected
from ctplab.app.bench import LONG, PRIVATE, Bench, Chosen
from ctplab.app.guard import owner
from ctplab.app.header import Header, renew
from ctplab.app.history import Form
from ctplab.app.jobs import Job
from ctplab.app.share import lead
from ctplab.app.suited import compress_values, suited
from ctplab.app.toast import in_page, plain_errors
from ctplab.app.views import size
from ctplab.disk import slug, write_json
from ctplab.formats.checkpoint import MANIFEST, read_manifest

CORPORA = ["atlas-web", "atlas-wiki", "atlas-news", "docs", "c4", "wikitext2", "ptb"]
LAYERS = ["layer", "method", "loss a token", "weights", "bytes", "bits a weight", "note"]


def spec_of(
    bits: str, sparsity: float, pattern: str, group: str, act_order: bool, symmetric: bool
) -> ctp.CompressionSpec:
    """The form as a spec; raises InputError if the values contradict each other."""
    return ctp.CompressionSpec(
        bits=None if bits == "none" else limits.whole(bits, "bits", 2, 8),
        sparsity=0.0 if pattern else limits.number(sparsity, "sparsity", 0, 99) / 100,
        pattern=pattern or None,
        group_size=None if group == "row" else limits.whole(group, "group size", 1, 65536),
        act_order=act_order,
        symmetric=symmetric,
    )


def short(corpus: str) -> str:
    """A corpus as part of a name: a file without its folder."""
    return slug(Path(corpus.removeprefix("file:").split(",")[0].split("#")[0]).stem or corpus)[:24]


def start(
    bench: Bench, model: str, spec: ctp.CompressionSpec, corpus: str, samples: Any, seq_len: Any, seed: Any, owner: str
) -> Job:
    """Queue a compression of a loaded model; it is loaded when done.

    Its folder in the runs is named after level and calibration. What lies there already and was made from the same is
    loaded; what was made from something else stays, and the new weights lie beside it.
    """
    full = bench.model(model)
    if full.about.get("spec"):
        raise ctp.InputError(f"{model} is compressed already: choose the full model it came from")
    title = f"compress {model} to {spec.tag}"
    try:
        n, length = limits.whole(samples, "windows", 1, 4096), limits.whole(seq_len, "tokens a window", 2, 8192)
        limits.whole(n * length, "windows x tokens a window", 2, 4 * 2**20)
        seed = limits.whole(seed or 0, "seed", 0, 2**31 - 1)
        bench.places.check_corpus(limits.text(corpus, "calibration text", 2000))
    except ctp.InputError as error:
        return bench.jobs.refused("compress", title, str(error), owner)
    name = f"{spec.tag}-{short(corpus)}-{n}x{length}" + (f"-s{seed}" if seed else "")

    def work(job: Job) -> None:
        job.note = f"reading {corpus}"
        windows = bench.corpus(corpus, full.tokenizer, length).train.sample(n, seed)
        study = ctp.Study(bench.store_of(full.name), full.model, full.tokenizer, job.progress)
        made_from = study.made_from(spec, windows)
        out = study.store.place(name, made_from)
        if (out / MANIFEST).exists():
            job.result, job.done, job.total = read_manifest(out), 1, 1
            told = "was there already"
        else:
            made = {**made_from, "calibrated_on": f"{corpus}, {n} x {length} tokens", "made": time.strftime("%Y-%m-%d")}
            made["recipe"] = {"corpus": corpus, "samples": n, "seq_len": length, "seed": seed}
            job.result = ctp.compress_to(full.source, out, full.tokenizer, windows, spec, progress=job.progress) | made
            write_json(job.result, out / MANIFEST)
            told = size(job.result["bytes"])
        job.result["name"] = bench.load_model(str(out), again=True)
        job.note = f"{told}: {out}"

    return bench.jobs.start("compress", title, work, owner)


def layers(manifest: dict[str, Any]) -> dict[str, Any]:
    """The report by layer as a Dataframe value."""
    data = [
        [r["name"], r["method"], f"{r['loss']:.4g}", r["weights"], r["bytes"], round(8 * r["bytes"] / r["weights"], 3),
         r["fallback"] or ""]
        for r in manifest.get("layers", [])
    ]  # fmt: skip
    return {"headers": LAYERS, "data": data}


def summary(manifest: dict[str, Any]) -> str:
    """One paragraph with the true numbers beside the nominal ones."""
    if "bits_per_weight" not in manifest:
        return ""
    lines = [
        f"**{manifest['tag']}**: {size(manifest['bytes'])} on disk. {manifest['bits_per_weight']:.2f} true bits a "
        f"compressed weight (codes, masks, scales, zeros); nominally {manifest['nominal_bits_per_weight']:g}. "
        f"{manifest['model_bits_per_weight']:.2f} bits over all weights, embeddings included. "
        f"{manifest['seconds']:.1f} s."
    ]
    return "\n\n".join(lines + [f"⚠ {in_page(warning)}" for warning in manifest["warnings"]])


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    first = suited(bench, bench.chosen().full)
    gr.Markdown(
        "Bits alone: GPTQ. Sparsity alone: SparseGPT. Both: jointly, in one pass. The full model is the header's."
    )
    with gr.Row():
        bits = gr.Radio(["none", "8", "4", "3", "2"], value="3", label="Bits a weight", elem_id="bits")
        sparsity = gr.Slider(0, 90, 0, step=2.5, label="Sparsity (% zeros)", elem_id="sparsity")
        pattern = gr.Dropdown([("none", ""), "2:4", "4:8"], value="", label="Pattern (sets the sparsity)")
        group = gr.Dropdown(["row", "128", "64", "32", "16"], value="row", label="Group size", elem_id="group")
    with gr.Row():
        corpus = gr.Dropdown(
            CORPORA, value=first.corpus, allow_custom_value=True, label="Calibration text", info="or file:PATH"
        )
        samples = gr.Number(first.samples, label="Windows", precision=0, minimum=1, elem_id="samples")
        seq_len = gr.Number(first.seq_len, label="Tokens a window", precision=0, minimum=2)
        act_order = gr.Checkbox(False, label="Act-order", info="solve columns by falling diag(H)")
        symmetric = gr.Checkbox(False, label="Symmetric grid")
    with gr.Row():
        go = gr.Button("Compress", variant="primary", elem_id="compress")
        guess = gr.Button("Estimate size and time", elem_id="compress-estimate")
        cancel = gr.Button("Cancel", elem_id="compress-cancel")
        use = gr.Button("Use it in Compare", elem_id="compress-use")
        onward = gr.Button("Next: train a prompt for it →", elem_id="compress-next", variant="secondary")
    named: Form = {
        "seed": header.seed, "corpus": corpus, "samples": samples, "seq_len": seq_len, "bits": bits,
        "sparsity": sparsity, "pattern": pattern, "group": group, "act_order": act_order, "symmetric": symmetric,
    }  # fmt: skip
    form = list(named.values())
    recipes.offer(tab, lambda: recipes.compressed(bench.runs), recipes.compress_form, form, "compress-again", PRIVATE)
    told = gr.Markdown(elem_id="compress-told")
    status = gr.HTML(elem_id="compress-job")
    text = gr.Markdown(elem_id="compress-summary")
    report = gr.Dataframe(
        headers=LAYERS, label="Report by layer", interactive=False, elem_id="layers", max_height=420, visible=False
    )
    shown = gr.State(None)

    def run(
        request: gr.Request, full: str, seed: float, corpus: str, samples: float, seq_len: float, *settings: Any
    ) -> str:
        with plain_errors():
            return start(bench, full, spec_of(*settings), corpus, samples, seq_len, seed, owner(request)).html()

    def report_of(manifest: dict[str, Any]) -> Any:
        return gr.update(value=layers(manifest), visible=bool(manifest.get("layers")))

    def poll(request: gr.Request, shown: Any, full: str, compressed: str, prompt: str | None) -> list[Any]:
        job = bench.jobs.latest("compress", owner(request))
        now = None if job is None else job.version  # before anything is drawn: what comes later is the next look's
        if job is None or now == shown:
            return [gr.skip()] * 7
        finished = renew(bench, full, compressed, prompt) if job.state == "done" else (gr.skip(),) * 3
        return [job.html(owner(request)), summary(job.result), report_of(job.result), now, *finished]

    def cancelled(request: gr.Request) -> None:
        with plain_errors():
            bench.jobs.mine("compress", owner(request)).cancel.set()
        gr.Info("Stopping at the next block; finished blocks are kept, and the same settings go on from there.")

    def chosen(request: gr.Request, full: str, prompt: str | None) -> tuple[Any, Any]:
        done = bench.jobs.done("compress", owner(request))
        if not done:
            raise gr.Error("You have compressed nothing yet: press Compress, and wait until it is done.")
        name = done[0].result["name"]
        gr.Info(f"{name} is the compressed model now.")
        prompt = bench.prompt_for(Chosen(full, name, prompt or ""))
        return gr.update(choices=bench.compressed_names(), value=name), gr.update(value=prompt or None)

    def title(told: dict[str, Any]) -> str:
        tag = spec_of(*list(told.values())[4:10]).tag
        return f"{told['full']} to {tag}, {told['samples']} windows of {told['corpus']}"

    def probe(full: str, _: Any, corpus: str, samples: float, seq_len: float, *settings: Any) -> str:
        with plain_errors():
            return expected(bench, full, spec_of(*settings), corpus, samples, seq_len)

    guess.click(probe, [header.full, *form], told, **LONG, **PRIVATE)
    header.on_another_model(lambda name: compress_values(suited(bench, name)), [corpus, samples, seq_len])
    started = go.click(run, [header.full, *form], status, **PRIVATE)
    header.past.record(started, "compress", "compress", {**named, "full": header.full}, title)
    gr.Timer(1.0).tick(
        poll, [shown, *header.chosen], [status, text, report, shown, *header.chosen], queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    cancel.click(cancelled, **PRIVATE)
    for button, place in ((use, "compare"), (onward, "train")):
        picked = button.click(chosen, [header.full, header.prompt], [header.compressed, header.prompt], **PRIVATE)
        header.uses.append(picked)
        lead(picked, header.tabs, place)
