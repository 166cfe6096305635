"""What all tabs share: loaded models and prompts, whose turn it is, and who pressed Stop.

Sessions hold names only (:class:`Chosen`); models and prompts live here, once for the whole server. No file of the page
imports torch: all mathematics is asked of ctplab.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.jobs import Jobs
from ctplab.app.loaded import Chosen as Chosen
from ctplab.app.loaded import Loaded as Loaded
from ctplab.app.places import Places
from ctplab.app.turns import Turns
from ctplab.disk import data_dir
from ctplab.formats.checkpoint import MANIFEST, describe
from ctplab.formats.tuned import PROMPT
from ctplab.models.fingerprints import base_fingerprint, tokenizer_fingerprint
from ctplab.models.loading import check_name, resolve
from ctplab.prompts import arms

ARMS = tuple(name for name in (*arms.USUAL, *arms.CONTROLS) if name not in ("text", "full+own"))
"""The arms of the page; those two need a text and a second prompt, which a session does not choose."""

#: Options of events that use the device: a few take turns on it, the others wait in the queue and see their place.
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 4}
#: Options of measurements, which take turns round by round and must not keep questions waiting.
LONG: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 2}
#: Options of events that only the page itself calls.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
MODELS, PROMPTS = 24, 200  # that stay in memory


class Bench:
    """The server's models, prompts and runs."""

    def __init__(
        self,
        runs: Path,
        stream: Callable[..., Generator[str]] = ctp.stream,
        device: str | None = None,
        places: Places | None = None,
    ) -> None:
        self.runs, self.device, self.places = runs, device, places or Places()
        self.stream = stream
        """The model, or a fake one in tests that measure time."""
        self.turns = Turns()
        self.tokens = 0
        """Tokens generated since the server began; shown by ``/healthz``."""
        self.models: dict[str, Loaded] = {}
        self.prompts: dict[str, tuple[str, ctp.SavedPrompt]] = {}
        self.jobs = Jobs(self.turns)
        self.exports: dict[str, Path] = {}
        """Files that the page offers as downloads, by name."""
        self._stops: dict[str, Event] = {}

    # Models and prompts

    def load_model(self, source: str, again: bool = False) -> str:
        """Load a folder or hub id (``again``: it was written anew) and return its name here. Raises InputError."""
        source = limits.text(source, "model", 1000).strip()
        if not source:
            raise ctp.InputError("give a model folder, a hub id, or 'atlas'")
        for loaded in list(self.models.values()):
            if loaded.source == source and not again:
                return loaded.name
        self.places.check_model(source)
        self.check_room()
        where = check_name(source)  # which may wait for the hub, and nobody need wait for that
        with self.turns.turn():
            model, tokenizer = ctp.load(where, device=self.device)
        folder = Path(resolve(source))
        about = describe(source) if folder.is_dir() else {"base": source}
        short = source if source == "atlas" or not folder.is_dir() else folder.resolve().name
        name = short if short not in self.models or self.models[short].source == source else source
        self.models[name] = Loaded(name, source, model, tokenizer, about)
        return name

    def check_room(self) -> None:
        """Raise InputError if no other model may be loaded."""
        if len(self.models) >= MODELS:
            raise ctp.InputError(f"{MODELS} models are loaded already; restart the server to load others")

    def load_prompt(self, folder: str) -> str:
        """Read a prompt folder and return its name here. Raises InputError in one line."""
        folder = limits.text(folder, "prompt", 1000).strip()
        if not folder:
            raise ctp.InputError("give a prompt folder (it holds prompt.json and prompt.safetensors)")
        self.places.check(folder)
        if len(self.prompts) >= PROMPTS:
            raise ctp.InputError(f"{PROMPTS} prompts are loaded already; restart the server to load others")
        saved = ctp.load_prompt(folder)
        path = Path(folder).resolve()
        name = path.name
        if name == PROMPT:  # a tuned model's own has the name of its folder
            name = f"{path.parent.name if (path.parent / MANIFEST).exists() else saved.info.get('tag', 'model')} prompt"
        if name in self.prompts and self.prompts[name][0] != str(path):
            name = str(path)
        self.prompts[name] = (str(path), saved)
        return name

    def model(self, name: str) -> Loaded:
        """A loaded model by name."""
        if name not in self.models:
            raise ctp.InputError(f"no model {name!r} is loaded; loaded are {', '.join(self.models) or 'none'}")
        return self.models[name]

    def is_embedded(self, name: str) -> bool:
        """Whether a loaded model is the embedded one or made from it: its exact match holds for no other."""
        return self.model(name).about.get("base", name) == "atlas" or self.model(name).source == "atlas"

    def prompt(self, name: str) -> ctp.SavedPrompt:
        """A loaded prompt by name."""
        if name not in self.prompts:
            raise ctp.InputError(f"no prompt {name!r} is loaded; loaded are {', '.join(self.prompts) or 'none'}")
        return self.prompts[name][1]

    def chosen(self, full: str = "", compressed: str = "", prompt: str = "") -> Chosen:
        """The three names; an empty one means the first of its kind."""
        models, prompts = list(self.models), list(self.prompts)
        small = [name for name in models if self.models[name].tag != "full"] or models
        return Chosen(full or models[0], compressed or small[0], prompt or (prompts[0] if prompts else ""))

    def full_names(self) -> list[str]:
        """Uncompressed models first."""
        return sorted(self.models, key=lambda name: self.models[name].tag != "full")

    def compressed_names(self) -> list[str]:
        """Compressed models first."""
        return sorted(self.models, key=lambda name: self.models[name].tag == "full")

    def companions(self, full: str) -> Chosen:
        """A full model with a compressed one made from it, and a prompt that fits, as far as they are loaded."""
        made = [
            name for name, loaded in self.models.items() if loaded.about.get("base") == full and loaded.tag != "full"
        ]
        small = made[0] if made else full
        return Chosen(full, small, self.prompt_for(Chosen(full, small, "")))

    def prompt_for(self, chosen: Chosen) -> str:
        """The chosen prompt if it fits the compressed model, else the first that does; empty if none does."""
        names = [name for name in (chosen.prompt, *self.prompts) if name in self.prompts]
        return next((name for name in names if self.fit(replace(chosen, prompt=name))[0]), "")

    def default_arms(self, chosen: Chosen) -> list[str]:
        """The usual arms that can run with what is loaded."""
        if chosen.full == chosen.compressed:
            return ["full"]
        return [name for name in arms.USUAL if name != "soft" or (chosen.prompt and self.fit(chosen)[0])]

    # Do they fit?

    def fit(self, chosen: Chosen) -> tuple[bool, list[str]]:
        """Whether the prompt fits the compressed model, and all that the user should know, in plain words."""
        full, small = self.model(chosen.full), self.model(chosen.compressed)
        notes = []
        if tokenizer_fingerprint(full.tokenizer) != tokenizer_fingerprint(small.tokenizer):
            notes.append(f"{small.name} has another tokenizer than {full.name}: their answers cannot be compared")
        elif base_fingerprint(full.model) != base_fingerprint(small.model):
            notes.append(
                f"{small.name} was made from {small.about.get('base', 'another model')}, not from this full one"
            )
        if not chosen.prompt:
            return False, [*notes, "no prompt yet: learn one in the tab Train, or load one below"]
        saved = self.prompt(chosen.prompt)
        try:
            found = ctp.attach(saved, small.model, small.tokenizer)
        except ctp.InputError as error:
            return False, [*notes, str(error)]
        learned_on = saved.info.get("tag")
        if learned_on and learned_on != small.tag and not found:
            found = [f"learned on {learned_on}, used here on {small.tag}: a transfer"]
        return True, notes + found

    def fitting(self, chosen: Chosen) -> tuple[Loaded, ctp.Prefix, ctp.Prefix]:
        """The compressed model, the prompt's rows and those it began with. Raises InputError if they do not fit."""
        if not chosen.prompt:
            raise ctp.InputError("no prompt is loaded: load one above, or learn one in the tab Train")
        small, saved = self.model(chosen.compressed), self.prompt(chosen.prompt)
        ctp.attach(saved, small.model, small.tokenizer)
        if not isinstance(saved.prefix, ctp.Prefix):
            raise ctp.InputError(f"{chosen.prompt} is made of keys and values: it has no rows to compare with tokens")
        if saved.initial is None:
            raise ctp.InputError(f"{chosen.prompt} does not say what its rows started from")
        return small, saved.prefix, saved.initial

    def arm(self, name: str, chosen: Chosen, hard_prompt: str, seed: int) -> tuple[ctp.Arm, Loaded]:
        """The arm called ``name`` with the model it runs on. Raises InputError if it cannot be made."""
        on_full = name in arms.KINDS and arms.KINDS[name].on_full
        loaded = self.model(chosen.full if on_full else chosen.compressed)
        _, saved = self.prompts.get(chosen.prompt, ("", None))
        parts = arms.Parts(loaded.model, loaded.model, loaded.tokenizer, hard_prompt, seed=seed)  # it takes one of both
        if saved is not None:
            parts = replace(parts, soft=saved.prefix, initial=saved.initial)
        try:
            arm = arms.build(name, parts)
        except ctp.InputError:
            if chosen.prompt:
                self.prompt(chosen.prompt)  # a wrong name is the better reason
            raise
        if saved is not None and (arm.prefix is saved.prefix or arm.prefix is saved.initial):
            ctp.attach(saved, loaded.model, loaded.tokenizer)
        return arm, loaded

    def corpus(self, name: str, tokenizer: Any, seq_len: Any) -> ctp.Corpus:
        """A text that the page may name, in windows. Raises InputError."""
        name = limits.text(name, "text", 2000).strip()
        self.places.check_corpus(name)
        return ctp.corpus(name, tokenizer, limits.whole(seq_len, "Tokens a window", 2, 8192))

    # Stop

    def begin(self, session: str) -> Event:
        """A fresh flag for a generation of ``session``; an earlier one of the same session is stopped."""
        self.stop(session)
        self._stops[session] = Event()
        return self._stops[session]

    def stop(self, session: str) -> None:
        """Stop what ``session`` generates: no further token is asked of any model."""
        if session in self._stops:
            self._stops.pop(session).set()

    def cancel_all(self) -> None:
        """Ask all generations and jobs to end: the server is about to."""
        for session in list(self._stops):
            self.stop(session)
        self.jobs.cancel_all()

    # Folders

    def store(self, chosen: Chosen) -> ctp.Store:
        """Run folders of the chosen base model."""
        return self.store_of(self.model(chosen.full).name)

    def store_of(self, base: str) -> ctp.Store:
        """Run folders of a base model by its name here."""
        return ctp.Store(self.runs, base)


def shipped() -> tuple[str | None, str | None]:
    """The compressed model and the prompt in the lab's own data folder, whatever they are called."""
    models = sorted(path.parent for path in data_dir().glob(f"*/{MANIFEST}"))
    prompts = sorted(path.parent for path in data_dir().glob("**/prompt.json"))
    return (str(models[0]) if models else None), (str(prompts[0]) if prompts else None)
