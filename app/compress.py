"""Tab *Compress*: GPTQ, SparseGPT or both on a loaded model, with progress, a report by layer, and true bytes."""

from typing import Any

import gradio as gr

import ctplab as ctp
from ctplab.app.bench import PRIVATE, Bench
from ctplab.app.header import Header, renew
from ctplab.app.jobs import Job
from ctplab.app.toast import plain_errors
from ctplab.app.views import size

CORPORA = ["atlas-web", "atlas-wiki", "atlas-news", "docs", "c4", "wikitext2", "ptb"]
LAYERS = ["layer", "method", "loss a token", "weights", "bytes", "bits a weight", "note"]


def spec_of(
    bits: str, sparsity: float, pattern: str, group: str, act_order: bool, symmetric: bool
) -> ctp.CompressionSpec:
    """The form as a spec; raises InputError if the values contradict each other."""
    return ctp.CompressionSpec(
        bits=None if bits == "none" else int(bits),
        sparsity=0.0 if pattern else sparsity / 100,
        pattern=pattern or None,
        group_size=None if group == "row" else int(group),
        act_order=act_order,
        symmetric=symmetric,
    )


def start(
    bench: Bench, model: str, spec: ctp.CompressionSpec, corpus: str, samples: int, seq_len: int, seed: int
) -> Job:
    """Queue a compression of a loaded model into the run folder; it is loaded when done."""
    full = bench.model(model)
    if full.about.get("spec"):
        raise ctp.InputError(f"{model} is compressed already: choose the full model it came from")
    out = ctp.Store(bench.runs, full.name).compressed(spec.tag)

    def work(job: Job) -> None:
        job.note = f"reading {corpus}"
        windows = ctp.corpus(corpus, full.tokenizer, seq_len).train.sample(samples, seed)
        job.result = ctp.compress_to(full.source, out, full.tokenizer, windows, spec, progress=job.progress)
        job.result["name"] = bench.load_model(str(out), again=True)
        job.note = f"{size(job.result['bytes'])} in {out}"

    return bench.jobs.start("compress", f"compress {model} to {spec.tag}", work)


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
    if not manifest:
        return ""
    lines = [
        f"**{manifest['tag']}**: {size(manifest['bytes'])} on disk. {manifest['bits_per_weight']:.2f} true bits a "
        f"compressed weight (codes, masks, scales, zeros); nominally {manifest['nominal_bits_per_weight']:g}. "
        f"{manifest['model_bits_per_weight']:.2f} bits over all weights, embeddings included. "
        f"{manifest['seconds']:.1f} s."
    ]
    return "\n\n".join(lines + [f"⚠ {warning}" for warning in manifest["warnings"]])


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
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
            CORPORA, value="atlas-web", allow_custom_value=True, label="Calibration text", info="or file:PATH"
        )
        samples = gr.Number(128, label="Windows", precision=0, minimum=1, elem_id="samples")
        seq_len = gr.Number(128, label="Tokens a window", precision=0, minimum=2)
        act_order = gr.Checkbox(False, label="Act-order", info="solve columns by falling diag(H)")
        symmetric = gr.Checkbox(False, label="Symmetric grid")
    with gr.Row():
        go = gr.Button("Compress", variant="primary", elem_id="compress")
        cancel = gr.Button("Cancel", elem_id="compress-cancel")
        use = gr.Button("Use it in Compare", elem_id="compress-use")
    status = gr.HTML(elem_id="compress-job")
    text = gr.Markdown(elem_id="compress-summary")
    report = gr.Dataframe(headers=LAYERS, label="Report by layer", interactive=False, elem_id="layers", max_height=420)
    shown = gr.State(None)

    def run(full: str, seed: float, corpus: str, samples: float, seq_len: float, *settings: Any) -> str:
        with plain_errors():
            return start(bench, full, spec_of(*settings), corpus, int(samples), int(seq_len), int(seed or 0)).html()

    def poll(shown: Any, full: str, compressed: str, prompt: str | None) -> list[Any]:
        job = bench.jobs.latest("compress")
        if job is None or job.version == shown:
            return [gr.skip()] * 7
        finished = renew(bench, full, compressed, prompt) if job.state == "done" else (gr.skip(),) * 3
        return [job.html(), summary(job.result), layers(job.result), job.version, *finished]

    def cancelled() -> None:
        job = bench.jobs.latest("compress")
        if job is None or not job.active:
            raise gr.Error("Nothing is being compressed.")
        job.cancel.set()
        gr.Info("Stopping at the next block; finished blocks are kept, and the same settings go on from there.")

    def chosen() -> Any:
        job = bench.jobs.latest("compress")
        if job is None or "name" not in job.result:
            raise gr.Error("No compression is done yet.")
        return gr.update(choices=bench.compressed_names(), value=job.result["name"])

    go.click(
        run, [header.full, header.seed, corpus, samples, seq_len, bits, sparsity, pattern, group, act_order, symmetric],
        status, **PRIVATE,
    )  # fmt: skip
    gr.Timer(1.0).tick(
        poll, [shown, *header.chosen], [status, text, report, shown, *header.chosen], queue=False,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    cancel.click(cancelled, queue=False, **PRIVATE)
    use.click(chosen, None, header.compressed, queue=False, **PRIVATE)
