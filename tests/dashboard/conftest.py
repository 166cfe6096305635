"""The dashboard on a free port, with the embedded model and with a fake one that makes a token every 20 ms."""

import asyncio
import gc
import os
import socket
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest
import uvicorn

from ctplab.app.bench import Bench, shipped
from ctplab.app.server import application

TICK = 0.02


def pytest_configure(config):
    """gradio and gradio_client leave sockets and event loops to the collector, and use what others deprecated."""
    for line in (
        "ignore:.*(socket|event loop):ResourceWarning",
        "ignore:Exception ignored in.*(socket|BaseEventLoop|Transport):pytest.PytestUnraisableExceptionWarning",
        "ignore::DeprecationWarning:(gradio|gradio_client|starlette|fastapi|uvicorn|websockets)",
    ):
        config.addinivalue_line("filterwarnings", line)


def pytest_unconfigure():
    """Let their open event loops go in silence before pytest's own last look at what was left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.set_event_loop(None)
        gc.collect()


def ticking(arm, tokenizer, text, *, max_new_tokens, sampler, stop, raw, start, on_token):
    """A model that repeats the question's last word, one token every 20 ms."""
    word = text.removesuffix("\nA:").split()[-1]

    def pieces():
        for i in range(max_new_tokens):
            time.sleep(TICK)
            on_token()
            yield f" {word}{i}"

    return pieces()


def loaded(runs) -> Bench:
    bench = Bench(runs)
    model, prompt = shipped()
    for source in ("atlas", model):
        bench.load_model(source)
    bench.load_prompt(prompt)
    return bench


def serve(bench):
    """uvicorn in a thread: its address, its bench, and how to end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(bench), port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)

    def close():
        server.should_exit = server.force_exit = True
        thread.join(10)

    return SimpleNamespace(url=f"http://127.0.0.1:{port}", bench=bench, close=close)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    site = serve(loaded(tmp_path_factory.mktemp("runs")))
    yield site
    site.close()


@pytest.fixture(scope="session")
def fake(real, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("fake"), stream=ticking)
    runs = real.bench.runs  # what other tests made there stays theirs
    bench.models = {name: each for name, each in real.bench.models.items() if runs not in Path(each.source).parents}
    bench.prompts = dict(real.bench.prompts)
    site = serve(bench)
    yield site
    site.close()


def complaint(message) -> bool:
    """Whether a console message is an error. A reload aborts what is under way, which is none."""
    aborted = ("AbortError: signal is aborted", "Unexpected error Connection errored out")
    return message.type == "error" and not message.text.startswith(aborted)


@pytest.fixture
def visit(chromium):
    """visit(site, width=..., dark=...) -> a page. At the end: no console errors, no request to another host."""
    opened, wrong = [], []

    def open_page(site, width=1360, height=900, dark=False, query=""):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if complaint(m) else None)
        page.on("pageerror", lambda e: wrong.append(f"page: {e}"))
        local = (site.url, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"left the machine: {r.url}"))
        page.goto(f"{site.url}/{query}")
        page.wait_for_selector("#generate")
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not wrong


@pytest.fixture
def text_file(tmp_path):
    """A text of 900 short documents, for work whose result does not matter."""
    path = tmp_path / "text.txt"
    path.write_text(
        "\n\n".join(f"The town {n} lies on the river {n % 7}, and people like it there." for n in range(900))
    )
    return path
