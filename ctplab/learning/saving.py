"""Save a learned prompt with its recipe and its learning curve."""

from pathlib import Path
from typing import Any

from ctplab.formats.prompt_file import made_for, write
from ctplab.learning.learned import Learned
from ctplab.models import Model, Tokenizer
from ctplab.models.fingerprints import copy_fingerprint
from ctplab.specs import PromptSpec


def save_prompt(
    learned: Learned, out: Path, spec: PromptSpec, model: Model | list[Model], tokenizer: Tokenizer, **provenance: Any
) -> dict[str, Any]:
    """Write the best prompt of ``learned`` as a folder and return its manifest.

    ``model``: what it was learned on, one or several. ``provenance`` adds facts such as base, tag and corpus
    fingerprint. Raises InputError if the disk refuses to write.
    """
    models = model if isinstance(model, list) else [model]
    info = {
        **provenance,
        **made_for(models[0], tokenizer),
        "copies": [copy_fingerprint(each) for each in models],
        "spec": spec.to_json(),
        "best_step": learned.best_step,
        "validation_nll": learned.best_validation,
        "stopped": learned.stopped,
        "warnings": learned.warnings,
        "curve": [vars(step) for step in learned.steps],
    }
    return write(learned.prefix, learned.initial, info, out)
