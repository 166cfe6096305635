"""What comes with the lab for SmolLM2: a prompt for each of two levels, and the numbers of a long run on a GPU.

data/smollm2/w3, w4-s50      prompt folders: learned on several compressions of the model in turn (see its ``copies``)
data/smollm2/long-run.json   what 1,500 steps win on the very weights that were learned through
"""

from pathlib import Path
from typing import Any

from ctplab.disk import read_json
from ctplab.formats import prompt_file


def folder() -> Path:
    """Inside an installed wheel, or ``data/smollm2`` in a checkout."""
    packaged = Path(__file__).parent / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "data" / "smollm2"


def prompt(tag: str) -> prompt_file.SavedPrompt:
    """The shipped prompt for the level ``tag``."""
    return prompt_file.load(folder() / tag)


def long_run() -> dict[str, Any]:
    """``learned_on``, ``about``, and ``runs``: level, objective, and corpora -> arm -> perplexity and recovery."""
    return read_json(folder() / "long-run.json")
