"""What the stages of ``real.py`` share: the record of results, the models, the text, and how each thing is learned."""

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ctplab as ctp
from ctplab.disk import whole, write_json, write_text
from ctplab.formats import checkpoint
from ctplab.formats.tuned import PROMPT, SOFT
from ctplab.learning.learned import Learned
from ctplab.learning.rows import initial_rows
from ctplab.learning.saving import save_tuned
from ctplab.models import Model
from ctplab.models.fingerprints import tensor_fingerprint, text_fingerprint
from ctplab.models.loading import default_dtype, resolve, usable
from ctplab.progress import bar, silent
from ctplab.prompts.prefix import none
from ctplab.tensor_files import read, write
from ctplab.text_files import read_json

Found = dict[str, Any]


class Late(Exception):
    """No time is left to begin another piece."""


class Record:
    """Results in ``results.json``, a piece at a time, and the tables made of them in ``tables.txt``."""

    def __init__(self, out: Path, settings: Found, minutes: float) -> None:
        """Raises InputError if ``out`` holds results of other settings."""
        self.out, self.began, self.limit = out, time.perf_counter(), 60 * minutes
        self._unshown: dict[str, str] = {}
        self.data: Found = {"settings": settings, "pieces": {}, "tables": {}}
        if (out / "results.json").exists():
            self.data = read_json(out / "results.json", finite=False)
            other = [name for name, value in settings.items() if self.data["settings"].get(name) != value]
            if other:
                raise ctp.InputError(f"{out} holds results of another {', '.join(other)}: choose another --out")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def say(self, line: str) -> None:
        print(f"[{self.seconds:6.1f} s] {line}", flush=True)

    def found(self, stage: str, name: str) -> Found | None:
        """A finished piece."""
        return self.data["pieces"].get(f"{stage}: {name}")

    def piece(self, stage: str, name: str, compute: Callable[[], Found]) -> Found:
        """The piece ``name`` of a stage, made unless it is there. Raises Late if the time is over."""
        kept = self.found(stage, name)
        if kept is not None:
            return kept
        self.in_time(f"{stage}: {name}")
        began = time.perf_counter()
        made = compute()
        made["seconds"] = round(time.perf_counter() - began, 2)
        self.data["pieces"][f"{stage}: {name}"] = made
        write_json(self.data, self.out / "results.json")
        self.say(f"{stage}: {name} ({made['seconds']:.1f} s)")
        return made

    def in_time(self, what: str) -> None:
        """Raise Late if the time is over before ``what`` has begun."""
        if self.seconds > self.limit:
            raise Late(what)

    def table(self, title: str, text: str) -> None:
        """Keep a table in the place of an earlier one of that title; :meth:`show` prints it."""
        self.data["tables"][title] = text
        self._unshown[title] = text
        write_json(self.data, self.out / "results.json")
        tables = [f"{name}\n\n{table}\n" for name, table in self.data["tables"].items()]
        write_text("\n".join(tables), self.out / "tables.txt")

    def show(self) -> None:
        """Print the tables that are new since the last time."""
        for title, text in self._unshown.items():
            print(f"\n{title}\n\n{text}\n", flush=True)
        self._unshown.clear()

    def keep_rows(self, name: str, rows: Tensor) -> None:
        """Keep the rows of a learned prompt in ``rows.safetensors``."""
        path = self.out / "rows.safetensors"
        kept = read(path) if path.exists() else {}
        with whole(path) as temporary:
            write(kept | {name: rows.float()}, temporary)


class Bench:
    """Models and text. Learning runs in the device's own dtype, scoring in float32."""

    def __init__(self, options: argparse.Namespace, record: Record) -> None:
        self.options, self.record, self.scratch = options, record, Path(options.scratch)
        self.device = usable(options.device)
        self.dtype = options.dtype or default_dtype(self.device)
        self.progress = bar if sys.stderr.isatty() else silent
        self.base = self._folder(options.model)
        self.tokenizer = ctp.load_tokenizer(self.base)
        self._tokens: dict[str, ctp.Corpus] = {}
        self.learned_on = self.corpus(options.corpus, options.seq_len)
        self.texts = [self.corpus(name, options.score_len).test for name in options.score]
        self._models: dict[Path, tuple[Model, Model]] = {}
        self._learners: dict[Path, Model] = {}

    def _folder(self, name: str) -> Path:
        if not Path(name).is_file():
            return Path(resolve(name))
        folder = self.scratch / "full"
        if not (folder / "config.json").exists():
            ctp.import_model(name, folder, progress=self.progress)
        return folder

    def corpus(self, name: str, seq_len: int) -> ctp.Corpus:
        """A corpus in windows of ``seq_len`` tokens; each split is tokenised once."""
        once = self._tokens.setdefault(name, ctp.corpus(name, self.tokenizer, seq_len))
        return ctp.Corpus(name, seq_len, lambda split: (getattr(once, split).stream, None))

    def models(self, folder: Path) -> tuple[Model, Model]:
        """The model in ``folder``, to score (float32) and to learn through. They stay in memory."""
        if folder not in self._models:
            exact, _ = ctp.load(folder, device=self.device, dtype="float32")
            self._models[folder] = exact, self._cast(exact)
        return self._models[folder]

    def learner(self, folder: Path) -> Model:
        """The model in ``folder``, to learn through only: in bfloat16 a third of the memory of :meth:`models`."""
        if folder in self._models or self.dtype == "float32":
            return self.models(folder)[1]
        if folder not in self._learners:
            self._learners[folder] = ctp.load(folder, device=self.device, dtype=self.dtype)[0]
        return self._learners[folder]

    def _cast(self, exact: Model) -> Model:
        kind = getattr(torch, self.dtype)
        if kind == torch.float32:
            return exact
        other = copy.deepcopy(exact)
        for parameter in other.parameters():  # tables of positions stay in float32, as in a model that is loaded so
            parameter.data = parameter.data.to(kind)
        return other

    def forget(self) -> None:
        """Give back the memory of all models but the full one."""
        self._models = {folder: pair for folder, pair in self._models.items() if folder == self.base}
        self._learners.clear()
        self.tidy()

    def tidy(self) -> None:
        """Give back what a finished run of learning held: recorded steps hang together in circles."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def compressed(self, name: str, spec: ctp.CompressionSpec, windows: Tensor, dtype: str | None = None) -> Path:
        """The compression ``name`` of the full model, made unless it lies in the scratch folder."""
        made_of = [spec.to_json(), tensor_fingerprint(windows), dtype or self.dtype, str(self.base)]
        folder = self.scratch / stamped(name, made_of)
        if not (folder / checkpoint.MANIFEST).exists():
            self.record.in_time(name)
            how: Found = {"device": self.device, "dtype": dtype or self.dtype, "progress": self.progress}
            began = time.perf_counter()
            ctp.compress_to(self.base, folder, self.tokenizer, windows, spec, **how)
            self.record.say(f"{name}: compressed ({time.perf_counter() - began:.1f} s)")
        return folder

    def spec(self, **changes: Any) -> ctp.PromptSpec:
        """The recipe of a prompt: KL to the full model, as many steps as --steps says."""
        o = self.options
        return replace(
            ctp.PromptSpec(tokens=o.tokens, steps=o.steps, batch=o.batch, kl=1.0, lr=o.prompt_lr, seed=o.seed),
            **changes,
        )

    def from_rows(self) -> tuple[Found, ctp.Prefix | None]:
        """What --from-rows and the looks change in a prompt's recipe, and the rows themselves."""
        o = self.options
        changes: Found = {"evaluate_every": o.look_every, "validation_windows": o.look_at}
        if o.from_rows is None:
            return changes, None
        return changes | {"init": "prompt"}, ctp.Prefix("soft", read(o.from_rows)["E"])

    def teacher(self, spec: ctp.PromptSpec) -> Model | None:
        return self.models(self.base)[1] if spec.taught else None

    def prompt(self, name: str, folders: Sequence[Path], spec: ctp.PromptSpec, **how: Any) -> ctp.SavedPrompt:
        """The prompt ``name``, learned through the models in ``folders``, made unless it lies in the scratch folder."""
        made_of: list[Any] = [spec.to_json(), [each.name for each in folders]]
        if (earlier := how.get("earlier")) is not None:
            made_of.append(tensor_fingerprint(earlier.rows))
        folder = self.scratch / "prompts" / stamped(name, made_of)
        if not (folder / "prompt.json").exists():
            self.record.in_time(name)
            models, text = [self.learner(each) for each in folders], self.learned_on
            learned = ctp.learn(
                models, text.train, text.validation, spec, tokenizer=self.tokenizer, teacher=self.teacher(spec),
                state=folder / "state.safetensors", progress=self.progress, **how,
            )  # fmt: skip
            self.told(name, learned)
            tags = "+".join(dict.fromkeys(each.name for each in folders))
            about: Found = {"base": str(self.base), "tag": tags, "corpus": text.name, "loss": "all"}
            about |= {"corpus_fingerprint": text.train.fingerprint, "seq_len": text.seq_len}
            ctp.save_prompt(learned, folder, spec, models, self.tokenizer, **about)
            (folder / "state.safetensors").unlink(missing_ok=True)
            self.record.keep_rows(name, learned.prefix.rows)
        return ctp.load_prompt(folder)

    def changes(self, name: str, folder: Path, model: Model, what: Sequence[str], spec: ctp.PromptSpec) -> Learned[Any]:
        """Learn changes of ``model`` of the kinds ``what``, with the grids of the compressed ``folder``."""
        text, kinds = self.learned_on, [kind for kind in what if kind != SOFT]
        self.record.in_time(name)
        rows = initial_rows(model, spec, self.tokenizer, text.train) if SOFT in what else None
        learned = ctp.learn_tuned(
            model, folder, kinds, text.train, text.validation, spec, prompt=rows, teacher=self.teacher(spec),
            rank=self.options.rank, state=self._state(name, spec), progress=self.progress,
        )  # fmt: skip
        self.told(name, learned)
        return learned

    def _state(self, name: str, spec: ctp.PromptSpec) -> Path:
        return self.scratch / "states" / f"{stamped(name, spec.to_json())}.safetensors"

    def tuned(self, name: str, folder: Path, what: Sequence[str], spec: ctp.PromptSpec) -> Path:
        """The folder of a tuned model, made unless it lies in the scratch folder."""
        out = self.scratch / "tuned" / stamped(name, [spec.to_json(), folder.name])
        if not (out / checkpoint.MANIFEST).exists():
            model = self.models(folder)[1]
            learned = self.changes(name, folder, model, what, spec)
            made: Found = {"what": list(what), "from": str(folder), "spec": spec.to_json()}
            about: Found = {"corpus": self.learned_on.name, "seq_len": self.learned_on.seq_len}
            save_tuned(learned, folder, out, made, spec, model, self.tokenizer, **about)
            self._state(name, spec).unlink(missing_ok=True)
            if learned.prefix.prefix is not None:
                self.record.keep_rows(name, learned.prefix.prefix.rows)
        return out

    def tuned_arm(self, name: str, folder: Path) -> ctp.Arm:
        """A tuned model with the prompt that was learned with it, if there is one. It does not stay in memory."""
        model, _ = ctp.load(folder, device=self.device, dtype="float32")
        rows = ctp.load_prompt(folder / PROMPT).prefix if (folder / PROMPT).exists() else none(model)
        return ctp.Arm(name, model, rows)

    def told(self, name: str, learned: Learned[Any]) -> None:
        """Say how learning went. Raises KeyboardInterrupt if it was interrupted."""
        if learned.stopped and learned.stopped.startswith("interrupted"):
            raise KeyboardInterrupt
        self.tidy()
        spent = sum(step.seconds for step in learned.steps)
        line = f"{name}: {len(learned.steps)} steps in {spent:.1f} s, {1000 * spent / len(learned.steps):.1f} ms each; "
        line += f"validation {learned.before:.4f}, best {learned.best_validation:.4f} at step {learned.best_step}"
        self.record.say("; ".join([line, *filter(None, [learned.stopped, *learned.warnings])]))
        if learned.not_recorded and self.device.startswith("cuda"):
            self.record.say(f"{name}: the card was given its work kernel by kernel: {learned.not_recorded}")

    def scores(self, arm: ctp.Arm, texts: Sequence[ctp.Split] | None = None, close: bool = True) -> Found:
        """The arm on the test texts: sums of every window, and with ``close`` how close it is to the full model."""
        found, full = {}, self.models(self.base)[0]
        how: Found = {"batch": self.options.score_batch, "progress": self.progress}
        for text in self.texts if texts is None else texts:
            found[text.name] = ctp.window_scores(arm, text, limit=self.options.windows, **how).to_json()
            if close and self.options.close:
                near = ctp.fidelity(arm, ctp.Arm("full", full, none(full)), text, limit=self.options.close, **how)
                found[text.name] |= {"kl": asdict(near.mean), "same": asdict(near.same_top)}
        return {"scores": found}


def stamped(name: str, made_of: Any) -> str:
    """The name of a folder that holds what was made of ``made_of`` (plain data), and nothing else."""
    return f"{name}-{text_fingerprint(json.dumps(made_of))[:6]}"


def curve(record: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(steps, validation NLL) of a learning curve in a manifest."""
    return [(step["step"] + 1, step["validation"]) for step in record["curve"] if step["validation"] is not None]
