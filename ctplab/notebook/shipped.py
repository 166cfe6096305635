"""The compressed copy of the embedded model with its learned prompt, as the lab brings them and the dashboard shows."""

from ctplab.disk import data_dir
from ctplab.errors import InputError
from ctplab.formats import loading, prompt_file
from ctplab.formats.checkpoint import MANIFEST
from ctplab.models import Model


def shipped_pair() -> tuple[Model, prompt_file.SavedPrompt]:
    """The shipped compressed model, on the CPU, and its prompt. Raises InputError if this installation has none."""
    models = sorted(path.parent for path in data_dir().glob(f"*/{MANIFEST}"))
    prompts = sorted(path.parent for path in data_dir().glob("**/prompt.json"))
    if not models or not prompts:
        raise InputError(f"{data_dir()} holds no compressed model with its prompt")
    return loading.load(models[0], device="cpu")[0], prompt_file.load(prompts[0])
