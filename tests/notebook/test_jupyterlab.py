"""A real JupyterLab in a real Chromium: the explorer of notebook 5 appears, and follows a slider."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
pytest.importorskip("jupyterlab", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
pytest.importorskip("ipywidgets", reason="needs Jupyter: pip install 'ctplab[notebooks]'")

PATIENCE = 120  # s, for a server and a kernel to start on a busy machine; no timing of ours
SOURCE = """
import ctplab as ctp
from ctplab.notebook import explore
from ctplab.prompts import prefix

model, tokenizer = ctp.load("atlas", device="cpu")
start = prefix.random_rows(model, 6)
explore.nearest(model, tokenizer, ctp.Prefix("soft", start.rows + 0.1, start.ids), start)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab with one notebook, ``explorer.ipynb``, and settings of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE)])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    port = free_port()
    options = [f"--ServerApp.port={port}", "--IdentityProvider.token=", "--allow-root", "--no-browser"]
    options += ["--expose-app-in-browser", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url="]
    homes = {name: str(tmp_path / name) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api").close()
            break
        except OSError:
            time.sleep(0.2)
    else:
        pytest.fail((tmp_path / "log").read_text()[-2000:])
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(PATIENCE)


def test_the_explorer_follows_its_slider(lab, chromium):
    page = chromium.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{lab}/lab/tree/explorer.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel != null")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    picture, said = ".jp-OutputArea img.widget-image", ".jp-OutputArea .widget-html-content pre"
    page.wait_for_selector(picture)
    before = page.get_attribute(picture, "src"), page.inner_text(said)
    page.locator(".noUi-handle").first.press("ArrowRight")  # row: from all to the first
    page.wait_for_function(
        "([s, t]) => document.querySelector(s).innerText.startsWith('row   0') && "
        "document.querySelector(s).innerText !== t && !document.querySelector(s).innerText.includes('row   1')",
        arg=[said, before[1]],
    )
    assert page.get_attribute(picture, "src") != before[0]
    page.close()
