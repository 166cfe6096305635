"""Save what was learned with its recipe and its learning curve: a prompt, or a tuned model with its prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctplab.formats import checkpoint, loading, tuned
from ctplab.formats.prompt_file import made_for, write
from ctplab.learning.learned import Learned
from ctplab.learning.tuned import Changes
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import copy_fingerprint, weights_fingerprint
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split


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


def made_tuned(
    what: Sequence[str], rank: int, spec: PromptSpec, model: Model, source: str, corpus: str, train: Split
) -> dict[str, Any]:
    """What decides a tuned model, as its manifest says it: the same again is the same model.

    ``what``: kinds of ``formats.tuned.KINDS``, and ``SOFT``; ``model``: what was loaded from the folder ``source``.
    """
    return {
        "what": list(what), "rank": rank, "spec": spec.to_json(), "from": source, "corpus": corpus,
        "corpus_fingerprint": train.fingerprint, "weights_fingerprint": weights_fingerprint(model),
    }  # fmt: skip


def save_tuned(
    learned: Learned[Changes],
    source: Path,
    out: Path,
    made_from: dict[str, Any],
    spec: PromptSpec,
    model: Model,
    tokenizer: Tokenizer,
    baselines: dict[str, float] | None = None,
    **provenance: Any,
) -> dict[str, Any]:
    """Fold the best changes of ``learned`` into the new folder ``out``, and return its manifest.

    ``source``: the compressed folder that ``model`` was loaded from. ``made_from``: what decides the result, with the
    list ``what``. ``baselines``: NLL a token of the full and the compressed model on the validation windows, if known.
    A prompt that was learned with the changes goes into ``out/prompt``, with ``provenance``. Raises InputError as
    :func:`ctplab.formats.tuned.fold`.
    """
    score, changes = learned.validation, learned.prefix
    about = {
        "steps": len(learned.steps),
        "best_step": learned.best_step,
        "validation": {"nll": score.nll, "n_tokens": score.n_tokens, "ppl": score.ppl},
        "curve": [vars(step) for step in learned.steps],
        "validation_before": learned.before,
        "validation_baselines": baselines,
    }

    def with_prompt(new: Path) -> None:
        if changes.prefix is None:
            return
        weight = embeddings(model)
        changed, _ = loading.load(new, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch."))
        manifest = checkpoint.read_manifest(new)
        rows = replace(learned, prefix=changes.prefix, initial=learned.initial.prefix)
        more = {"base": manifest["base"], "tag": manifest["tag"], **provenance}
        save_prompt(rows, new / tuned.PROMPT, spec, changed, tokenizer, **more)

    return tuned.fold(source, out, changes.tensors, made_from | about, with_prompt)
