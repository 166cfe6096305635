"""The pace of saved prompts: their files' learning curves between the compressed and the full model (``measure/pace``).

The windows are those that learning validated on. They are found again from corpus and recipe, as the file names them.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

from ctplab.errors import InputError
from ctplab.formats.prompt_file import SavedPrompt
from ctplab.learning.schedule import validations
from ctplab.measure.pace import Pace, pace
from ctplab.measure.perplexity import window_scores
from ctplab.models import Model, Tokenizer
from ctplab.models.fingerprints import copy_fingerprint
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import none
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Corpus, Split, corpus


def paces(
    full: Model,
    compressed: Model,
    prompts: Mapping[str, SavedPrompt],
    tokenizer: Tokenizer,
    *,
    batch: int = 16,
    progress: Progress = silent,
) -> list[Pace]:
    """The pace of prompts that were learned through ``compressed``; each begins with the rows that it started from.

    Raises InputError if a prompt was learned through other weights or through several models, if its file has no curve,
    or if its text is not the same here.
    """
    found, texts = [], cache(partial(corpus, tokenizer=tokenizer))
    for name, prompt in prompts.items():
        if prompt.info.get("copies") != [copy_fingerprint(compressed)]:
            raise InputError(f"{name} was not learned through these weights alone, so its curve is not about them")
        text, windows = _validated_on(name, prompt, texts)
        sums = partial(window_scores, text=text, limit=windows, batch=batch, progress=progress)
        curve = [step for step in prompt.info["curve"] if step["validation"] is not None]
        looks = [(step["step"] + 1, step["validation"]) for step in curve]
        if prompt.initial is not None:
            looks.append((0, sums(Arm("init", compressed, prompt.initial)).score.mean))
        alone = [sums(Arm("alone", model, none(model))).score.mean for model in (compressed, full)]
        found.append(pace(name, looks, *alone))
    return found


def _validated_on(name: str, prompt: SavedPrompt, texts: Callable[..., Corpus]) -> tuple[Split, int]:
    """The validation split, and how many of its windows learning looked at."""
    info = prompt.info
    if not isinstance(info.get("spec"), dict) or not info.get("corpus") or not isinstance(info.get("seq_len"), int):
        raise InputError(f"the file of {name} does not say by which recipe and on which text it was learned")
    if not any(step["validation"] is not None for step in info.get("curve") or ()):
        raise InputError(f"the file of {name} has no learning curve")
    spec = PromptSpec.from_json(info["spec"])
    text = texts(info["corpus"], seq_len=info["seq_len"], loss=info.get("loss"))
    if text.train.fingerprint != info.get("corpus_fingerprint"):
        raise InputError(f"{info['corpus']} is not the same text here as where {name} was learned")
    return text.validation, validations(spec, len(text.train.windows), len(text.validation.windows)).windows
