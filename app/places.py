"""Which folders and files a page may name. A server that others reach must not read what its owner did not offer."""

import re
from collections.abc import Iterable
from pathlib import Path

import ctplab as ctp
from ctplab.disk import cache_dir, data_dir
from ctplab.models.known import MODELS
from ctplab.text.corpora import NAMES

HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Places:
    """The folders under which a page may name paths; None allows all (for scripts, which are their own owner)."""

    def __init__(self, folders: Iterable[Path] | None = None) -> None:
        self._folders = None if folders is None else [folder.resolve() for folder in folders]

    def holds(self, path: str | Path) -> bool:
        """Whether ``path`` lies in one of the folders, links followed."""
        if self._folders is None:
            return True
        try:
            found = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return any(found.is_relative_to(folder) for folder in self._folders)

    def check(self, path: str | Path) -> None:
        """Raise InputError if ``path`` is elsewhere. The message is the same whether it exists or not."""
        if not self.holds(path):
            raise ctp.InputError(
                f"{path} is not in a folder that this page may read; only who starts the server can allow it"
            )

    def check_model(self, source: str) -> None:
        """Raise InputError unless ``source`` is a known model, a hub id, or a folder that may be read."""
        if source == "atlas" or source in MODELS or (HUB.fullmatch(source) and not Path(source).exists()):
            return
        self.check(source)

    def check_corpus(self, name: str) -> None:
        """Raise InputError unless ``name`` is a known corpus or made of files that may be read."""
        if name in NAMES:
            return
        if not name.startswith("file:"):
            raise ctp.InputError(f"unknown text {name[:80]!r}; known are {', '.join(NAMES)}, or file:PATH")
        for part in name.removeprefix("file:").split("#")[0].split(","):
            self.check(part)


def usual(runs: Path, named: Iterable[str]) -> list[Path]:
    """What a page may always read: the run folder, the lab's own data and cache, and what the owner named."""
    return [runs, data_dir(), cache_dir() / "models", *(Path(name) for name in named if Path(name).exists())]
