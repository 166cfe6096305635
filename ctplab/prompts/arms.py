"""The arm: a model with a prefix in front of every input. Everything that the lab compares is an arm.

The table :data:`KINDS` says for every arm how it is built, what it is, and which colour it has. Measuring, the demo,
the dashboard, the command line, plots and notebooks read this table. None of them treats one kind as a special case.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import tensor_fingerprint, weights_fingerprint
from ctplab.prompts import prefix
from ctplab.prompts.prefix import AnyPrefix, Prefix
from ctplab.text.reading import start_token

USUAL = ("full", "compressed", "hard", "soft")
CONTROLS = ("bos", "random", "init", "text", "full+soft", "full+own")
"""Other explanations of a recovery: rows that were not learned, and the full model behind a prompt."""
ALONE = ("bos", "random")
"""The controls that need no learned prompt."""


@dataclass(frozen=True)
class Arm:
    """A model with a prefix in front of every input."""

    name: str
    model: Model
    prefix: AnyPrefix

    @property
    def fingerprint(self) -> str:
        """Changes with every weight of the model, packed ones too, and with every row of the prefix."""
        return f"{weights_fingerprint(self.model)}-{tensor_fingerprint(*prefix.tensors(self.prefix))}"


@dataclass(frozen=True)
class Parts:
    """The parts that arms are built from. An arm cannot be built if a part that it needs is missing."""

    full: Model | None = None
    compressed: Model | None = None
    tokenizer: Tokenizer | None = None
    hard: AnyPrefix | str | None = None
    """The hard prompt, as rows or as text."""
    soft: AnyPrefix | None = None
    """The learned prompt."""
    initial: Prefix | None = None
    """The rows that the learned prompt started from."""
    text: Tensor | None = None
    """Token ids of real text; the ``text`` control takes the first k."""
    full_own: AnyPrefix | None = None
    """A prompt learned on the full model with the same budget."""
    k: int | None = None
    """Number of rows of the ``random`` control. None: as many as the learned prompt has."""
    seed: int = 0


@dataclass(frozen=True)
class Kind:
    """One entry of the table."""

    says: str
    """What the arm is, as pages and help texts word it."""
    colour: str
    on_full: bool = False
    """True if the arm uses the full model, not the compressed one."""
    build: Callable[[Model, Parts], AnyPrefix | None] = lambda model, parts: None
    """Returns the prefix, or None if a part is missing."""
    needs: str = "a model of its own"
    """What the arm needs, for the error message if a part is missing."""


def _hard(model: Model, parts: Parts) -> AnyPrefix | None:
    if not isinstance(parts.hard, str):
        return parts.hard
    return None if parts.tokenizer is None else prefix.hard(model, parts.tokenizer, parts.hard)


def _bos(model: Model, parts: Parts) -> Prefix | None:
    return None if parts.tokenizer is None else prefix.bos(model, parts.tokenizer)


def _random(model: Model, parts: Parts) -> Prefix | None:
    k = parts.k or (parts.soft.k if parts.soft else None)
    if k is None:
        return None
    others = [parts.initial.ids if parts.initial else None, _text_ids(parts, k)]
    start = None if parts.tokenizer is None else start_token(parts.tokenizer)
    others.append(None if start is None else (start,))
    return prefix.random_control(model, k, parts.seed, unlike=others)


def _text_ids(parts: Parts, k: int) -> tuple[int, ...] | None:
    return None if parts.text is None else tuple(parts.text[:k].tolist())


def _text(model: Model, parts: Parts) -> Prefix | None:
    if parts.text is None or parts.soft is None:
        return None
    if len(parts.text) < parts.soft.k:
        raise InputError(f"the text control needs {parts.soft.k} tokens of text, not {len(parts.text)}")
    return prefix.from_ids(model, parts.text[: parts.soft.k], "text")


def _nothing(model: Model, parts: Parts) -> Prefix:
    return prefix.none(model)


KINDS = {
    "full": Kind("the uncompressed model", "#0072B2", True, _nothing, "the full model"),
    "compressed": Kind("the compressed model", "#D55E00", False, _nothing, "the compressed model"),
    "hard": Kind("compressed, behind the hard prompt's words", "#E69F00", False, _hard, "the words of a hard prompt"),
    "soft": Kind(
        "compressed, behind the learned prompt", "#009E73", False, lambda model, parts: parts.soft, "a learned prompt"
    ),
    "bos": Kind(
        "control: compressed, behind the start token", "#56B4E9", False, _bos, "a tokenizer that has a start token"
    ),
    "random": Kind(
        "control: compressed, behind random vocabulary rows", "#999999", False, _random,
        "a learned prompt, to have as many rows",
    ),
    "init": Kind(
        "control: compressed, behind the untrained prompt", "#CC79A7", False, lambda model, parts: parts.initial,
        "a learned prompt that says what its rows started from",
    ),
    "text": Kind(
        "control: compressed, behind real text", "#F0E442", False, _text, "a learned prompt, and text of its length"
    ),
    "full+soft": Kind(
        "control: uncompressed, behind the learned prompt", "#6A5ACD", True, lambda model, parts: parts.soft,
        "a learned prompt",
    ),
    "full+own": Kind(
        "control: uncompressed, behind a prompt of its own", "#44AA99", True, lambda model, parts: parts.full_own,
        "a prompt learned on the full model",
    ),
    "lora": Kind("baseline: compressed, with a LoRA adapter", "#332288"),
    "scales+norms": Kind("compressed, with scales and norms learned as long: no byte more", "#EE6677"),
    "shipped": Kind("compressed, behind the prompt that comes with ctplab, untouched", "#117733"),
    "from-nothing": Kind("compressed, behind a prompt learned as long from random rows", "#DDCC77"),
    "nearest": Kind("compressed, behind the learned rows' nearest tokens", "#882255"),
}  # fmt: skip
COLOURS = {name: kind.colour for name, kind in KINDS.items()}


def build(name: str, parts: Parts) -> Arm:
    """Build the arm called ``name``. Raises InputError if there is no such arm or a part is missing."""
    if name not in KINDS:
        raise InputError(f"unknown arm {name!r}; known are {', '.join(KINDS)}")
    kind = KINDS[name]
    model = parts.full if kind.on_full else parts.compressed
    rows = None if model is None else kind.build(model, parts)
    if model is None or rows is None:
        raise InputError(f"the arm {name!r} needs {kind.needs}")
    return Arm(name, model, rows)


def arms(
    full: Model | None = None,
    compressed: Model | None = None,
    hard: AnyPrefix | str | None = None,
    soft: AnyPrefix | None = None,
    *,
    controls: bool = False,
    tokenizer: Tokenizer | None = None,
    initial: Prefix | None = None,
    text: Tensor | None = None,
    full_own: AnyPrefix | None = None,
    seed: int = 0,
) -> list[Arm]:
    """Build the usual arms, and with ``controls`` also the controls. The arguments are as in :class:`Parts`.

    An arm is left out if a part that it needs is not given. Raises InputError if the two models have different dtypes,
    because the arms would then differ by more than compression.
    """
    parts = Parts(full, compressed, tokenizer, hard, soft, initial, text, full_own, seed=seed)
    check_dtypes([model for model in (full, compressed) if model is not None])
    found = []
    for name in (*USUAL, *CONTROLS) if controls else USUAL:
        model = full if KINDS[name].on_full else compressed
        if model is None or (name == "bos" and tokenizer is not None and start_token(tokenizer) is None):
            continue
        rows = KINDS[name].build(model, parts)
        if rows is not None:
            found.append(Arm(name, model, rows))
    return found


def control(model: Model, name: str, *, k: int = 100, tokenizer: Tokenizer | None = None, seed: int = 0) -> Arm:
    """Build a control that needs no learned prompt: ``bos`` (needs the tokenizer) or ``random`` (k rows)."""
    if name not in ALONE:
        raise InputError(f"{name!r} is no control that a model alone makes; {' and '.join(ALONE)} are")
    return build(name, Parts(compressed=model, tokenizer=tokenizer, k=k, seed=seed))


def check_dtypes(models: Sequence[Model], before: Collection[str] = ()) -> str:
    """Return the dtype that all models share, as text. Raises InputError if they differ.

    ``before``: dtypes of models that are compared with them and are no longer in memory.
    """
    found = sorted({str(embeddings(model).dtype).removeprefix("torch.") for model in models} | set(before))
    if len(found) > 1:
        raise InputError(
            f"the models to compare are in {' and '.join(found)}: load both in one, for example dtype='{found[0]}'"
        )
    return found[0] if found else ""
