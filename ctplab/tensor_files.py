"""Read and write safetensors files. Whatever is wrong with one is one line that names it and a remedy.

A file that the lab keeps for itself is *sealed*: it holds 16 hex digits over its tensors and over what it says about
them. So a file that was damaged, or changed by another hand, is told from one that is as it was written.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctplab import text_files
from ctplab.errors import InputError

ENTRY = "ctplab"
"""The one entry of a sealed file's metadata. Of several the order would be random, and so the file's bytes."""
LFS_POINTER = b"version https://git-lfs"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as safetensors opens it: header read, tensors not yet. Raises InputError if it is none, or cut short."""
    text_files.regular(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except MemoryError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path}: {_what_is_wrong(path, error)}") from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    """What the file is instead of a whole safetensors file, and what to do."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or str(error)
    with path.open("rb") as file:
        head = file.read(64)
    again = "copy or download it again"
    if head.startswith(LFS_POINTER):
        return "it is a Git LFS pointer, not the file itself; 'git lfs pull' fetches it"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "it is a pickle, which is not read here; save the tensors as safetensors"
    size = path.stat().st_size
    if size < 8 or (int.from_bytes(head[:8], "little") + 8 > size > 8 and head[8:9] == b"{"):
        return f"it is damaged or cut short: it has {size} bytes, its header alone needs more; {again}"
    if "ncomplete" in str(error):  # MetadataIncompleteBuffer; "incomplete metadata, file not fully covered"
        return f"it is damaged or cut short: {size} bytes do not hold what its header lists; {again}"
    return f"it is damaged, or no safetensors file ({str(error).splitlines()[0]}); {again}"


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names of the tensors in ``path`` with their shapes, from its header alone."""
    with opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)


def read(path: Path, *, finite: bool = False) -> dict[str, Tensor]:
    """All tensors of a file. Raises InputError if it is damaged or, if ``finite``, holds NaN or infinite numbers."""
    with opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    if finite:
        check_finite(found, path)
    return found


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError if one of the tensors from ``path`` holds NaN or infinite numbers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise InputError(f"{path} is damaged: {name} holds NaN or infinite numbers")


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors for any program. The caller gives the temporary path of ``disk.whole``."""
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def write_sealed(tensors: Mapping[str, Tensor], about: dict[str, Any], path: Path) -> None:
    """Write tensors with what is to be known about them, plain JSON. The caller gives the path of ``disk.whole``."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps({"about": about, "seal": _seal(plain, about)})
    save_file(plain, path, metadata={ENTRY: text})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, what is known about them) as :func:`write_sealed` wrote them. Raises InputError if they are not so."""
    with opened(path) as file:
        text = (file.metadata() or {}).get(ENTRY)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    if text is None:
        raise InputError(f"{path} was not written by this version of the lab")
    found = text_files.parse_json(text, finite=False)
    about = found.get("about") if isinstance(found, dict) else None
    if not isinstance(about, dict) or found.get("seal") != _seal(tensors, about):
        raise InputError(f"{path} is damaged, or was changed since it was written")
    return tensors, about


def told(path: Path) -> dict[str, Any]:
    """What a sealed file says of itself, from its header alone: unchecked. Raises InputError if it says nothing."""
    with opened(path) as file:
        found = text_files.parse_json((file.metadata() or {}).get(ENTRY) or "null", finite=False)
    about = found.get("about") if isinstance(found, dict) else None
    if not isinstance(about, dict):
        raise InputError(f"{path} was not written by this version of the lab")
    return about


def _seal(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """16 hex digits over names, shapes, dtypes and values, and over ``about``."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
