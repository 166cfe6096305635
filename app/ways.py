"""What the tab *Train* can learn: a prompt through weights that stay, or changes of the weights, with or without one.

Each way takes steps, answers a question as it stands, and becomes a folder. Weights that change are a copy of the job's
own: all other work goes on with the model in memory.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench, Chosen, Loaded
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.tuned import KINDS, PROMPT, SOFT, tuned_from
from ctplab.learning.learned import Learned, Step
from ctplab.learning.loop import take_steps
from ctplab.learning.rows import initial_rows, start
from ctplab.learning.saving import made_tuned, save_tuned
from ctplab.learning.tuned import Changes, Tuned
from ctplab.models import Model
from ctplab.models.loading import resolve
from ctplab.prompts import prefix

NAMES = {SOFT: "prompt", **{kind: kind for kind in KINDS}}
"""What can be learned, as ``ctplab tune --what`` names it -> as the page names it."""


def words(what: Iterable[str]) -> str:
    """What is learned, as a reader says it: ``scales, norms and prompt``."""
    *most, last = [NAMES[kind] for kind in (*KINDS, SOFT) if kind in what] or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def short(what: Iterable[str], tokens: float) -> str:
    """The same as part of a name: ``scales+norms+k32``."""
    parts = [f"k{int(tokens or 0)}" if kind == SOFT else kind for kind in (*KINDS, SOFT) if kind in what]
    return "+".join(parts) or "nothing"


@dataclass(frozen=True)
class Wanted:
    """What is learned, from which text, and how."""

    what: tuple[str, ...]
    """Names as in :data:`NAMES`; ``("soft",)`` is a prompt alone."""
    spec: ctp.PromptSpec
    corpus: str
    seq_len: int
    rank: int = 8
    """Of low-rank updates."""

    @property
    def kinds(self) -> list[str]:
        """What changes in the weights; nothing if a prompt is learned alone."""
        return [kind for kind in self.what if kind != SOFT]

    @property
    def words(self) -> str:
        """``scales, norms and prompt``."""
        return words(self.what)

    @property
    def short(self) -> str:
        """The same as part of a name."""
        return short(self.what, self.spec.tokens)


@dataclass(frozen=True)
class Lesson:
    """Two models in memory, what is wanted of them, and its text."""

    full: Loaded
    small: Loaded
    wanted: Wanted
    text: ctp.Corpus = field(repr=False)

    @property
    def teacher(self) -> Model | None:
        return self.full.model if self.wanted.spec.kl else None

    @property
    def provenance(self) -> dict[str, object]:
        """What a prompt's file says about its text."""
        train = self.text.train
        loss = "all" if train.mask is None else "answers"
        return {"corpus": self.wanted.corpus, "loss": loss, "corpus_fingerprint": train.fingerprint,
                "seq_len": self.text.seq_len}  # fmt: skip


def lesson(bench: Bench, chosen: Chosen, wanted: Wanted) -> Lesson:
    """Read the text as the compressed model reads it. Raises InputError if a step would take too many tokens."""
    small = bench.model(chosen.compressed)
    text = bench.corpus(wanted.corpus, small.tokenizer, wanted.seq_len)
    limits.whole(wanted.spec.batch * text.seq_len, "batch x tokens a window", 2, 2**17)
    _ = text.train.windows, text.validation.windows  # read now, while others use the device
    return Lesson(bench.model(chosen.full), small, wanted, text)


def check_weights(small: Loaded, wanted: Wanted) -> None:
    """Raise InputError if the model's folder has nothing of the kinds that are to change."""
    if wanted.kinds and not (Path(resolve(small.source)) / MANIFEST).exists():
        raise ctp.InputError(
            f"{small.name} was not compressed by ctplab, so only a prompt can be learned for it: compress a model in "
            "the tab Compress, or choose another one above"
        )
    if {"low-rank", "codes"} <= {*wanted.kinds} and (small.about.get("spec") or {}).get("bits"):
        raise ctp.InputError(
            f"{small.name} is quantised, so both low-rank and codes move its codes: choose one of them"
        )


class PromptWay:
    """Rows in front of the model in memory, which stays as it is."""

    def __init__(self, lesson: Lesson, state: Path | None = None) -> None:
        self.lesson, small, text = lesson, lesson.small, lesson.text
        self.result: Learned[ctp.Prefix] = start(small.model, lesson.wanted.spec, small.tokenizer)
        self.steps: Iterator[Step] = ctp.learn_steps(
            small.model, text.train, text.validation, lesson.wanted.spec, tokenizer=small.tokenizer,
            teacher=lesson.teacher, state=state, result=self.result,
        )  # fmt: skip

    @property
    def rows(self) -> Any:
        """The prompt's rows (k, d)."""
        return self.result.prefix.rows

    def arm(self) -> ctp.Arm:
        """The model behind the best prompt so far."""
        return ctp.Arm("soft", self.lesson.small.model, self.result.prefix)

    def save(self, out: Path, baselines: dict[str, float]) -> None:
        """Write the best prompt. ``baselines``: validation NLL of both models."""
        small = self.lesson.small
        ctp.save_prompt(
            self.result, out, self.lesson.wanted.spec, small.model, small.tokenizer, tag=small.tag, weights=small.name,
            base=small.about.get("base", self.lesson.full.name), validation_baselines=baselines,
            **self.lesson.provenance,
        )  # fmt: skip

    def names(self, bench: Bench, out: Path) -> dict[str, str]:
        """Load what was saved; header's list -> its name there."""
        return {"prompt": bench.load_prompt(str(out))}

    def close(self) -> None:
        """End the steps."""
        self.steps.close()  # type: ignore[attr-defined]


class TunedWay:
    """Scales, norms or kept values of a copy of the compressed model, with the rows of a prompt if they are wanted."""

    def __init__(self, lesson: Lesson, device: str | None, state: Path | None = None, out: Path | None = None) -> None:
        self.lesson, wanted, text = lesson, lesson.wanted, lesson.text
        self.source = Path(resolve(lesson.small.source))
        self.model, self.tokenizer = ctp.load(self.source, device=device)
        self.made_from = made_tuned(
            wanted.what, wanted.rank, wanted.spec, self.model, lesson.small.source, wanted.corpus, text.train
        )
        before = None if out is None else tuned_from(out)
        if before is not None and {key: before.get(key) for key in self.made_from} != self.made_from:
            raise ctp.InputError(f"{out} holds a model that was tuned otherwise: choose another name")
        rows = initial_rows(self.model, wanted.spec) if SOFT in wanted.what else None
        self.tuned = Tuned(self.model, self.source, wanted.kinds, wanted.rank, wanted.spec.seed, rows, lesson.teacher)
        self.result: Learned[Changes] = self.tuned.start()
        self.steps: Iterator[Step] = take_steps(
            self.tuned, [self.model], text.train, text.validation, wanted.spec, self.result, teacher=lesson.teacher,
            state=state,
        )  # fmt: skip

    @property
    def rows(self) -> Any:
        """The prompt's rows (k, d), or None."""
        return self.tuned.rows

    def arm(self) -> ctp.Arm:
        """The changed model as it is now, behind its prompt if it has one."""
        return ctp.Arm(
            "+".join(self.lesson.wanted.what), self.model, self.tuned.now().prefix or prefix.none(self.model)
        )

    def save(self, out: Path, baselines: dict[str, float]) -> None:
        """Write the best changes as ``ctplab tune`` does; they replace what this same learning left when stopped.

        ``baselines``: validation NLL of both models.
        """
        new = out.with_name(f"{out.name}.new") if out.exists() else out
        if new != out:
            shutil.rmtree(new, ignore_errors=True)  # of a save that was killed
        save_tuned(
            self.result, self.source, new, self.made_from, self.lesson.wanted.spec, self.model, self.tokenizer,
            baselines, **self.lesson.provenance,
        )  # fmt: skip
        if new != out:
            shutil.rmtree(out)
            new.rename(out)

    def names(self, bench: Bench, out: Path) -> dict[str, str]:
        """Load what was saved; header's list -> its name there."""
        found = {"compressed": bench.load_model(str(out), again=True)}
        return found | ({"prompt": bench.load_prompt(str(out / PROMPT))} if SOFT in self.lesson.wanted.what else {})

    def close(self) -> None:
        """End the steps, and let go of the copy."""
        self.steps.close()  # type: ignore[attr-defined]
        self.tuned.remove()


def way(bench: Bench, lesson: Lesson, state: Path | None = None, out: Path | None = None) -> PromptWay | TunedWay:
    """Make ready to learn. ``state``: a file to resume from, and ``out``: where an earlier part may lie."""
    return TunedWay(lesson, bench.device, state, out) if lesson.wanted.kinds else PromptWay(lesson, state)
