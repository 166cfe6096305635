"""Serve the page and ``/healthz`` on localhost. Nothing leaves the machine."""

import os
import socket
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # both are read at import
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

import gradio as gr
import uvicorn
from fastapi import FastAPI

import ctplab as ctp
from ctplab.app import export, page
from ctplab.app.answers import warm
from ctplab.app.bench import Bench, shipped

HERE = Path(__file__).parent
#: Fonts of the reader's own system: the default theme would fetch some.
THEME = gr.themes.Base(
    primary_hue="emerald",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"],
).set(  # contrast of at least 4.5 to 1, light and dark
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
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

    export.route(app, bench)
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


def launch(
    *, full: str, compressed: list[str], prompts: list[str], runs: Path, device: str | None, host: str, port: int
) -> None:
    """Load the models and prompts (the embedded ones if none are named) and serve until Ctrl-C."""
    with socket.socket() as probe:
        try:
            taken = probe.connect_ex((host, port)) == 0
        except OSError as error:
            raise ctp.InputError(f"there is no host {host!r} ({error.strerror}); try host='127.0.0.1'") from None
        if taken:
            raise ctp.InputError(f"port {port} is taken; choose another with port=")
    bench = Bench(runs, device=device)
    bench.load_model(full)
    if full == "atlas" and not compressed:
        model, prompt = shipped()
        compressed = [model] if model else []
        prompts = prompts or ([prompt] if prompt else [])
    for source in compressed:
        bench.load_model(source)
    for folder in prompts:
        bench.load_prompt(folder)
    warm(bench)
    print(f"ctplab dashboard: http://{host}:{port}  (Ctrl-C stops it)", flush=True)
    uvicorn.run(application(bench), host=host, port=port, log_level="warning")
