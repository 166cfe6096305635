"""The files that hold a model folder's weights, whatever else lies beside them. No pickle is ever read."""

from pathlib import Path

from ctplab.disk import check_name
from ctplab.errors import InputError
from ctplab.reading import read_json, told

INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that the folder's index names, else ``model.safetensors``, else all safetensors (folders of ours).

    Raises InputError if there are none, or one is missing.
    """
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).exists():
        return sorted(folder.glob("*.safetensors")) or _none(folder)
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{folder / INDEX} is damaged: it has no weight_map")
    for name in shards.values():
        with told(folder / INDEX):
            check_name(name, "the file")
    files = [folder / name for name in sorted(set(shards.values()))]
    for path in files:
        if not path.exists():
            raise InputError(f"{folder} is not complete: {path.name} is missing")
    return files


def _none(folder: Path) -> list[Path]:
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        convert = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')"
        raise InputError(
            f"{folder} has its weights as {pickles[0]}, a pickle, which is not read here; "
            f"convert it if you trust it: python -c \"{convert}.save_pretrained('{folder}')\""
        )
    raise InputError(f"{folder} has no weights: no safetensors file")
