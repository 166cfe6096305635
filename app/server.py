"""Serve the page and ``/healthz``, on localhost unless told otherwise. Nothing leaves the machine."""

import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # both are read at import
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes import Base

import ctplab as ctp
from ctplab.app import export, page
from ctplab.app.answers import warm
from ctplab.app.bench import Bench, shipped
from ctplab.app.guard import LOCAL, Guard, waiting_in
from ctplab.app.places import Places, usual

HERE = Path(__file__).parent
#: Fonts of the reader's own system: the default theme would fetch some.
THEME = Base(
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
    button_primary_background_fill_hover_dark="*primary_800",
    checkbox_border_color="*neutral_500",  # what is drawn needs 3 to 1: an empty box too
    checkbox_border_color_dark="*neutral_300",
    checkbox_border_color_hover="*neutral_700",
    checkbox_border_color_hover_dark="*neutral_100",
)


def application(bench: Bench, hosts: frozenset[str] | None = LOCAL, token: str | None = None) -> Any:
    """The page and ``/healthz`` as one ASGI application, for who asks it by one of ``hosts`` or knows the token."""
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
    mounted = gr.mount_gradio_app(
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
    return Guard(mounted, hosts=hosts, token=token, waiting=waiting_in(blocks))


def launch(
    *,
    full: str,
    compressed: list[str],
    prompts: list[str],
    runs: Path,
    device: str | None,
    host: str,
    port: int,
    token: str | None = None,
    allow: list[Path] | None = None,
) -> None:
    """Load the models and prompts (the embedded ones if none are named) and serve until Ctrl-C.

    Other machines need a ``token``: one is made if none is given. Pages may name paths in the run folder, beside what
    is named here, and in the folders of ``allow``. Raises InputError if the address cannot be had.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            taken = probe.connect_ex((host, port)) == 0
        except OSError as error:
            raise ctp.InputError(f"there is no host {host!r} ({error.strerror}); try host='127.0.0.1'") from None
        if taken:
            raise ctp.InputError(f"port {port} is taken; choose another with port=")
    for folder in allow or ():
        if not folder.is_dir():
            raise ctp.InputError(f"allow= takes folders, and {folder} is none")
    named = [full, *compressed, *prompts]
    bench = Bench(runs, device=device, places=Places([*usual(runs, named), *(allow or ())]))
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
    local = host in LOCAL
    if not local:
        token = token or secrets.token_urlsafe(16)
        print(f"ctplab: {host} is reached by other machines: who has the link can use the page and its folders, over "
              "plain HTTP (put a proxy with TLS in front where others can listen)", file=sys.stderr)  # fmt: skip
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    link = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}{f'/?token={token}' if token else ''}"
    print(f"ctplab dashboard: {link}  (Ctrl-C stops it)", flush=True)
    serve(application(bench, LOCAL if local and token is None else None, token), bench, host, port)


def serve(app: Any, bench: Bench, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM, which end it whatever is still running; a job goes on when it is asked again."""
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    handle = server.handle_exit

    def leave(number: int, frame: Any) -> None:
        bench.cancel_all()
        handle(number, frame)

    server.handle_exit = leave  # type: ignore[method-assign]
    try:
        server.run()
    except KeyboardInterrupt:
        print("ctplab: stopped", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(128 + signal.SIGINT)  # threads that measure or learn would be waited for; their files are whole
