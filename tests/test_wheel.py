"""An installation adds one name, ``ctplab``, and has all that its commands need, also without a checkout around it."""

import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import ctplab
from ctplab.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONFIG = PROJECT["tool"]["hatch"]["build"]["targets"]
PATIENCE = 180  # seconds for a server on a busy machine, no timing of ours


def build(kind: str, source: Path, out: Path) -> Path:
    """Call the hook that pip calls; nothing is downloaded."""
    pytest.importorskip("hatchling", reason="needs hatchling: pip install 'ctplab[dev]'")
    code = f"import sys; from hatchling.build import build_{kind} as build; print(build(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, capture_output=True, text=True)
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What an installation puts into site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


def python(installed: Path, *arguments: str, cwd: Path) -> subprocess.Popen:
    """Python with the unpacked wheel in front of everything else."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, **output)


def test_there_is_one_version_everywhere(wheel, capsys):
    """The package's own is the one that is built, told and written in the changelog, whatever was installed here."""
    assert wheel.name.startswith(f"ctplab-{ctplab.__version__}-")
    assert "version" not in PROJECT["project"] and PROJECT["tool"]["hatch"]["version"] == {"path": "ctplab/__init__.py"}
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"ctplab {ctplab.__version__}\n"
    newest = re.search(r"^## (\S+)( \(unreleased\))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and ctplab.__version__ == newest[1] + (".dev0" if newest[2] else "")


def test_the_configuration_puts_everything_into_ctplab():
    wheel, sdist = CONFIG["wheel"], CONFIG["sdist"]
    assert wheel["packages"] == ["ctplab"]
    for source, inside in wheel["force-include"].items():
        assert PurePosixPath(inside).parts[0] == "ctplab" and (ROOT / source).is_dir()
        assert f"/{PurePosixPath(source).parts[0]}" in sdist["include"]  # a wheel made from it needs it too
    assert all((ROOT / name.lstrip("/")).exists() for name in sdist["include"])


def test_the_only_new_name_is_ctplab(wheel):
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ctplab"}


def test_the_wheel_has_every_file_of_library_dashboard_and_data(wheel):
    expected = set()
    for folder, inside in {"ctplab": "ctplab", **CONFIG["wheel"]["force-include"]}.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert {name for name in names(wheel) if ".dist-info/" not in name} == expected
    assert {"ctplab/app/server.py", "ctplab/app/style.css", "ctplab/app/page.js.html"} <= expected


def test_a_wheel_from_the_sdist_is_the_same(wheel, tmp_path):
    with tarfile.open(build("sdist", ROOT, tmp_path)) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert names(build("wheel", source, tmp_path)) == names(wheel)


def test_installed_modules_are_not_taken_from_a_checkout(installed, tmp_path):
    """Nor from somebody else's package that is called ``app``."""
    stranger = installed / "app"
    stranger.mkdir()
    (stranger / "server.py").write_text("raise SystemExit('the wrong one')")
    code = "import ctplab.app, ctplab.disk; print(*ctplab.app.__path__, ctplab.disk.data_dir(), sep='\\n')"
    said = python(installed, "-c", code, cwd=tmp_path).communicate()[0]
    assert said.split() == [str(installed / "ctplab" / "app"), str(installed / "ctplab" / "atlas" / "data")]


def test_the_dashboard_starts_from_an_installation_in_an_empty_folder(installed, tmp_path):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'ctplab[app]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = python(installed, "-m", "ctplab", "app", "--port", str(port), cwd=tmp_path)
    try:
        health = json.loads(fetched(server, f"http://127.0.0.1:{port}/healthz"))
        assert health["status"] == "ok" and len(health["models"]) == 2 and health["prompts"]
        page = fetched(server, f"http://127.0.0.1:{port}/").decode()
        assert "event.ctrlKey || event.metaKey" in page  # page.js.html
        assert ".arms { display: grid" in page  # style.css
    finally:
        server.terminate()
        server.communicate()


def fetched(server: subprocess.Popen, address: str) -> bytes:
    """The answer, as soon as there is one."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read()
        except urllib.error.URLError:
            time.sleep(0.3)
    server.kill()
    return pytest.fail(server.communicate()[0][-2000:])
