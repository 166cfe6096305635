"""The files that hold a model folder's weights, whatever else lies beside them. No pickle is ever read."""

from pathlib import Path

from ctplab.disk import check_name
from ctplab.errors import InputError
from ctplab.text_files import expect, read_json, told

INDEX = "model.safetensors.index.json"
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
MOST_LAYERS = 10_000
"""The deepest published models have about 200. A damaged number would build blocks until the memory is full."""


def check_config(folder: Path) -> None:
    """Raise InputError if the configuration in ``folder`` is damaged, or names an absurd number of layers."""
    path = folder / "config.json"
    config = read_json(path, finite=False)
    with told(path):
        expect(config, model_type=str | None)
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            expect(part, **dict.fromkeys(LAYERS, int | None))
            for key in LAYERS:
                if not 0 < part.get(key, 1) <= MOST_LAYERS:
                    raise InputError(f"{key} is {part[key]}")


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
