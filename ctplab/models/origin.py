"""Where an imported model came from, kept in its configuration and so in every copy that is made of it."""

from pathlib import Path
from typing import Any

from ctplab.text_files import read_json

SOURCE = "ctplab_source"
"""Key of ``config.json``: ``file``, ``sha256`` and ``tensor_types`` (type -> how many) of the imported file."""
_UNQUANTISED = ("F64", "F32", "F16", "BF16")


def origin(folder: Path) -> dict[str, Any]:
    """``source`` of an imported model and, if its publisher had quantised it, a ``note``; nothing for other models."""
    source = read_json(folder / "config.json", finite=False).get(SOURCE)
    if not isinstance(source, dict):
        return {}
    types = source.get("tensor_types")
    if not isinstance(types, dict) or not all(type(count) is int for count in types.values()):
        return {"source": source}
    quantised = [f"{kind}: {count}" for kind, count in types.items() if kind not in _UNQUANTISED]
    if not quantised:
        return {"source": source}
    note = f"its publisher had quantised it already ({', '.join(quantised)} of {sum(types.values())} tensors): "
    return {"source": source, "note": f"{note}what is called full here is not the original"}
