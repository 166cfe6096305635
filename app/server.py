"""Serving the page on localhost: ``/healthz`` beside it, and nothing that leaves the machine."""

import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI

import ctplab as ctp
from app import page
from app.bench import Bench

HERE = Path(__file__).parent
#: Fonts of the reader's own system: the default theme would fetch some.
THEME = gr.themes.Base(
    primary_hue="emerald",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"],
)


def application(bench: Bench) -> FastAPI:
    """The page and ``/healthz`` as one ASGI application."""
    app = FastAPI(title="ctplab", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> dict:
        """Alive, and how many tokens were generated so far."""
        return {
            "status": "ok",
            "version": ctp.__version__,
            "models": list(bench.models),
            "prompts": list(bench.prompts),
            "tokens": bench.tokens,
        }

    blocks = page.build(bench)
    blocks.queue(max_size=32, default_concurrency_limit=8)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        show_error=True,
        ssr_mode=False,
        footer_links=["api"],
        theme=THEME,
        css_paths=HERE / "style.css",
        head_paths=HERE / "page.js.html",
    )


def serve(bench: Bench, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    print(f"ctplab dashboard: http://{host}:{port}", flush=True)
    uvicorn.run(application(bench), host=host, port=port, log_level="warning")
