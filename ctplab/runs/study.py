"""The pipeline compress -> learn -> measure. Every step is kept on disk and can be resumed."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ctplab.atlas.questions import Question
from ctplab.compression import walk
from ctplab.disk import kept_at, once, write_json
from ctplab.formats import checkpoint, loading, prompt_file, tuned
from ctplab.learning import lora, rows
from ctplab.learning.learned import Learned
from ctplab.learning.saving import save_prompt, save_tuned
from ctplab.learning.tuned import learn_tuned
from ctplab.measure.perplexity import window_scores
from ctplab.measure.tasks.closed_book import answers, marks
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import tensor_fingerprint, text_fingerprint, weights_fingerprint
from ctplab.progress import Progress
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import Prefix, none
from ctplab.runs.store import Store
from ctplab.scores import WindowScores
from ctplab.specs import CompressionSpec, LoraSpec, PromptSpec
from ctplab.text.corpora import Split
from ctplab.text.reading import start_of


@dataclass(frozen=True)
class Study:
    """One base model, its run folder and how progress is shown."""

    store: Store
    full: Model
    tokenizer: Tokenizer
    progress: Progress
    _folders: dict[str, str] = field(default_factory=dict, repr=False)
    """Tag -> name of the folder of its weights, for the tags that were compressed here."""

    def made_from(self, spec: CompressionSpec, calibration: Tensor) -> dict[str, Any]:
        """What decides the weights, as their manifest names it."""
        return {
            "spec": spec.to_json(),
            "calibration": tensor_fingerprint(calibration),
            "full_fingerprint": weights_fingerprint(self.full),
        }

    def folder(self, tag: str) -> str:
        """The name of the folder of the level ``tag``: another one if other weights lay there before."""
        return self._folders.get(tag, tag)

    def compressed(self, spec: CompressionSpec, calibration: Tensor) -> tuple[Model, dict[str, Any]]:
        """Return the compressed model and its manifest. The first call makes them; later calls load them.

        Weights of another calibration or model are never replaced: these then lie beside them.
        """
        made_from = self.made_from(spec, calibration)
        folder = self.store.place(spec.tag, made_from)
        self._folders[spec.tag] = folder.name
        if (folder / checkpoint.MANIFEST).exists():
            manifest = checkpoint.read_manifest(folder)
            if made_from.items() <= manifest.items():
                weight = next(self.full.parameters())
                dtype = str(weight.dtype).removeprefix("torch.")
                return loading.load(folder, device=str(weight.device), dtype=dtype)[0], manifest
        model, report = walk.compress(self.full, calibration, spec, progress=self.progress)
        manifest = checkpoint.save(model, folder, self.tokenizer, report, self.store.model) | made_from
        write_json(manifest, folder / checkpoint.MANIFEST)
        return model, manifest

    def prompt(
        self,
        tag: str,
        name: str,
        model: Model,
        train: Split,
        validation: Split,
        spec: PromptSpec,
        *,
        how: Callable[..., Learned] = rows.learn,
        earlier: Prefix | None = None,
    ) -> prompt_file.SavedPrompt:
        """Return the learned prompt. The first call learns it; after a kill or Ctrl-C the next call resumes.

        ``how``: ``learn`` for rows, ``learn_kv`` for keys and values. ``earlier``: what the init 'prompt' starts from.
        """
        folder = self.store.prompt(self.folder(tag), name)
        teacher = self.full if spec.needs_full else None
        learned_from = {
            "corpus_fingerprint": train.fingerprint,
            "weights_fingerprint": "-".join(map(weights_fingerprint, [model, teacher] if teacher else [model])),
        }
        more: dict[str, Any] = {}
        if earlier is not None:
            more["earlier"] = earlier
            learned_from["earlier"] = tensor_fingerprint(earlier.rows)
        if (folder / prompt_file.MANIFEST).exists():
            saved = prompt_file.load(folder)
            if saved.info["spec"] == spec.to_json() and learned_from.items() <= saved.info.items():
                return saved
        state = self.store.prompt_state(self.folder(tag), name)
        learned = how(
            model,
            train,
            validation,
            spec,
            tokenizer=self.tokenizer,
            teacher=teacher,
            state=state,
            progress=self.progress,
            **more,
        )
        _go_on(learned)
        provenance = {"base": self.store.model, "tag": tag, "corpus": train.name, "seq_len": train.seq_len}
        provenance |= learned_from
        save_prompt(learned, folder, spec, model, self.tokenizer, **provenance)
        state.unlink(missing_ok=True)
        return prompt_file.load(folder)

    def tuned(
        self,
        tag: str,
        model: Model,
        what: Sequence[str],
        train: Split,
        validation: Split,
        spec: PromptSpec,
        *,
        prompt: Prefix | None = None,
    ) -> Arm:
        """The arm of ``model`` with what is tuned, kinds of ``formats.tuned.KINDS``. Kept and resumed like a prompt.

        ``model``: what :meth:`compressed` returned for ``tag``. ``prompt``: rows that are learned in the same loop.
        """
        teacher = self.full if spec.taught else None
        made_from = {
            "what": [*what, *([tuned.SOFT] if prompt else [])],
            "spec": spec.to_json(),
            "corpus": [train.fingerprint, validation.fingerprint],
            "start": None if prompt is None else tensor_fingerprint(prompt.rows),
            "weights_fingerprint": "-".join(map(weights_fingerprint, [model, teacher] if teacher else [model])),
        }
        name = "+".join(made_from["what"])
        folder = self.store.tuned(self.folder(tag), f"{name}-{text_fingerprint(json.dumps(made_from))[:8]}")
        if tuned.tuned_from(folder) is None:
            state = folder.with_name(f"{folder.name}.state.safetensors")
            source = self.store.compressed(self.folder(tag))
            learned = learn_tuned(
                model, source, what, train, validation, spec, prompt=prompt, teacher=teacher, state=state,
                progress=self.progress,
            )  # fmt: skip
            _go_on(learned)
            about = {"corpus": train.name, "corpus_fingerprint": train.fingerprint, "seq_len": train.seq_len}
            save_tuned(learned, source, folder, made_from, spec, model, self.tokenizer, **about)
            state.unlink(missing_ok=True)
        weight = embeddings(model)
        found, _ = loading.load(folder, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch."))
        rows = prompt_file.load(folder / tuned.PROMPT).prefix if prompt else none(found)
        return Arm(name, found, rows)

    @contextmanager
    def adapted(
        self, tag: str, name: str, model: Model, train: Split, validation: Split, spec: PromptSpec
    ) -> Iterator[Model]:
        """Put a learned LoRA adapter into ``model`` while the context lasts. It is kept and resumed like a prompt."""
        folder = self.store.adapter(self.folder(tag), name)
        made_from = {
            "spec": spec.to_json(),
            "lora": LoraSpec().to_json(),
            "corpus": [train.fingerprint, validation.fingerprint],
            "model": weights_fingerprint(model),
        }
        teacher = self.full if spec.needs_full else None
        if teacher is not None:
            made_from["teacher"] = weights_fingerprint(teacher)
        adapter = lora.Adapter(model, LoraSpec(), spec.seed)
        try:
            if lora.made_from(folder) == made_from:
                adapter.load(folder)
            else:
                state = folder / "state.safetensors"
                learned = lora.learn_lora(
                    adapter, train, validation, spec, teacher=teacher, state=state, progress=self.progress
                )
                _go_on(learned)
                adapter.save(folder, made_from, learned)
                state.unlink(missing_ok=True)
            yield adapter.model
        finally:
            adapter.remove()

    def scores(self, tag: str, arm: Arm, split: Split, limit: int | None) -> WindowScores:
        """The arm's scores on the first ``limit`` windows, kept in the run folder."""
        keep = kept_at(self.store.score(self.folder(tag), arm.name, split.name))
        return window_scores(arm, split, limit=limit, keep=keep, progress=self.progress)

    def ask(self, tag: str, arm: Arm, questions: list[Question]) -> tuple[list[str], list[bool]]:
        """The arm's answers, and whether each is right."""
        result = once(
            self.store.score(self.folder(tag), arm.name, "questions"),
            {"arm": arm.fingerprint, "asked": _asked(questions, self.tokenizer), "start": start_of(self.tokenizer)},
            lambda: {"answers": answers(arm, self.tokenizer, questions, progress=self.progress)},
        )
        return result["answers"], marks(result["answers"], questions)


def _asked(questions: list[Question], tokenizer: Tokenizer) -> str:
    """Changes with the questions and with the template they are asked through."""
    return text_fingerprint(str(getattr(tokenizer, "chat_template", None)), *(question.text for question in questions))


def _go_on(learned: rows.Learned) -> None:
    """Raise KeyboardInterrupt if learning was interrupted, so that the whole study ends."""
    if learned.stopped and learned.stopped.startswith("interrupted"):
        raise KeyboardInterrupt
