"""The material of the recipes: one base model, its compressed versions, its prompts and adapters.

Each is made on first use and kept in the run folder, so a killed run resumes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ctplab.formats.loading import load
from ctplab.formats.prompt_file import SavedPrompt
from ctplab.learning.lora import same_budget
from ctplab.models import Model
from ctplab.paper.recipes import HUB, LEARNED_ON, LEVELS, Scale
from ctplab.progress import Progress
from ctplab.runs.store import Store
from ctplab.runs.study import Study
from ctplab.text.corpora import corpus


class Bench:
    """One of the paper's models by name, or the model that ``scale`` uses instead."""

    def __init__(
        self,
        scale: Scale,
        model: str,
        root: Path,
        *,
        device: str | None,
        dtype: str | None,
        seed: int,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.scale, self.seed, self.say = scale, seed, say
        self.name = scale.model or HUB[model][0]
        full, tokenizer = load(self.name, device=device, dtype=dtype)
        self.texts = {
            what: corpus(name, tokenizer, scale.seq_len, loss=scale.loss) for what, name in scale.corpora.items()
        }
        self.study = Study(Store(root, self.name), full, tokenizer, progress)
        self._last: tuple[str, Model] = ("full", full)

    def model(self, level: str) -> tuple[str, Model]:
        """(tag, model) of a level. Only the last compressed model is held, because each may fill the memory."""
        if level in ("fp16", "full"):
            return "full", self.study.full
        spec = LEVELS[level]
        if self._last[0] != spec.tag:
            calibration = next(iter(self.texts.values())).train.sample(128, self.seed)
            self._last = ("", None)
            self._last = (spec.tag, self.study.compressed(spec, calibration)[0])
        return self._last

    def prompt(self, level: str, what: str = LEARNED_ON, tokens: int | None = None) -> SavedPrompt:
        """The prompt of ``tokens`` rows learned at a level on one of the paper's corpora."""
        spec = replace(self.scale.prompt, tokens=tokens or self.scale.prompt.tokens, seed=self.seed)
        text = self.texts[what]
        self.say(f"{self.name} {level}: a prompt of {spec.tokens} tokens on {text.name}, {spec.steps} steps")
        tag, model = self.model(level)
        name = f"{text.name}-k{spec.tokens}-s{self.seed}"
        return self.study.prompt(tag, name, model, text.train, text.validation, spec)

    def adapted(self, level: str, what: str = LEARNED_ON) -> AbstractContextManager[Model]:
        """Put a LoRA adapter, learned with the prompts' budget, into the level's model while the context lasts."""
        spec, text = same_budget(replace(self.scale.prompt, seed=self.seed)), self.texts[what]
        self.say(f"{self.name} {level}: a LoRA adapter on {text.name}, {spec.steps} steps")
        tag, model = self.model(level)
        return self.study.adapted(tag, f"{text.name}-lora-s{self.seed}", model, text.train, text.validation, spec)
