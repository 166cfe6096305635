"""A prompt and its model as one download that any server runs: the prompt's rows become tokens of the vocabulary."""

from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.header import Header
from ctplab.app.toast import plain_errors
from ctplab.app.views import size
from ctplab.disk import whole

WEIGHTS = ["dense", "gptq", "gptq_v2"]
FOLLOW = """(file) => {
  if (!file || !file.href) return;
  const link = document.createElement("a");
  link.href = file.href;
  link.download = file.name;
  link.click();
}"""


def write(bench: Bench, chosen: Chosen, name: str, weights: str) -> tuple[str, dict[str, str]]:
    """Write the folder under the runs, and a zip of it beside. Returns what happened in words, and the link."""
    small = bench.model(chosen.compressed)
    if not chosen.prompt or not str(name).strip():
        raise ctp.InputError("choose a prompt, and give the export a name")
    name, weights = limits.name(name, "the export"), limits.one_of(weights, "weights", WEIGHTS)
    out = bench.store(chosen).export(small.name, name)
    with bench.turns.turn():
        found = ctp.export_tokens(bench.prompt(chosen.prompt), small.source, out, weights=weights)
    file = out.with_name(f"{out.name}.zip")
    with whole(file) as temporary, ZipFile(temporary, "w", ZIP_STORED) as packed:  # weights do not shrink
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            packed.write(path, Path(out.name) / path.relative_to(out))
    bench.exports[file.name] = file
    lines = [f"{found['k']} soft tokens in **{small.name}** ({weights}), {size(file.stat().st_size)}: `{out}`"]
    lines += [f"Note: {warning}" for warning in found["warnings"]]
    return "\n\n".join(lines), {"name": file.name, "href": f"export/{file.name}"}


def route(app: FastAPI, bench: Bench) -> None:
    """Serve the zips that this server wrote, and nothing else of the runs."""

    @app.get("/export/{name}")
    def export(name: str) -> FileResponse:
        """One export as a download."""
        if name not in bench.exports:
            raise HTTPException(404, "no such export")
        return FileResponse(bench.exports[name], filename=name, media_type="application/zip")


def build(bench: Bench, header: Header) -> None:
    """Lay the form out inside the current ``gr.Blocks``."""
    with gr.Accordion("Export: the compressed model with the prompt in its vocabulary", open=False, elem_id="export"):
        gr.Markdown(
            "A plain Hugging Face folder whose tokenizer puts the prompt in front of every text. transformers and vLLM "
            "run it as it is; `ctplab export model DIR --to gguf` makes it a file for llama.cpp and Ollama."
        )
        with gr.Row(equal_height=True):
            name = gr.Textbox("tokens", label="Name", elem_id="export-name", min_width=120)
            weights = gr.Dropdown(WEIGHTS, value="dense", label="Weights", min_width=120)
            button = gr.Button("Write and download", elem_id="export-write", scale=0, min_width=180)
        told = gr.Markdown(elem_id="export-told")
    file = gr.JSON(visible="hidden")

    def write_zip(full: str, compressed: str, prompt: str | None, name: str, weights: str) -> tuple[Any, Any]:
        with plain_errors():
            return write(bench, Chosen(full, compressed, prompt or ""), name, weights)

    done = button.click(write_zip, [*header.chosen, name, weights], [told, file], **DEVICE, **PRIVATE)
    done.success(None, file, js=FOLLOW, **PRIVATE)
