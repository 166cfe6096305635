"""Settings as frozen, validated dataclasses of numbers and names. Their JSON carries a schema version."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

from ctplab.errors import InputError
from ctplab.text_files import of_kind, shown

SCHEMA = 1
LARGEST = 2**31 - 1
"""No count is larger. What is larger would overflow somewhere inside torch."""


def check_types(cls: type, entry: dict[str, Any]) -> None:
    """Raise InputError unless ``entry`` holds fields of the dataclass ``cls`` only, each of its type."""
    hints = get_type_hints(cls)
    if unknown := sorted(set(entry) - set(hints)):
        raise InputError(f"{cls.__name__}: unknown settings {unknown}")
    for key, value in entry.items():
        if not of_kind(value, hints[key]):
            wanted = getattr(hints[key], "__name__", str(hints[key]))
            raise InputError(f"{key} must be of type {wanted}, not {shown(value)}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _check_sizes(spec: Any) -> None:
    """Raise InputError if a number is not finite, or a count too large for torch."""
    for name, value in vars(spec).items():
        if isinstance(value, float):
            _check(math.isfinite(value), f"{name} must be finite, not {value}")
        elif isinstance(value, int):
            _check(abs(value) <= LARGEST, f"{name} must be at most {LARGEST}, not {value}")


class _Json:
    """``to_json`` / ``from_json`` for the specs below."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict with the schema's version."""
        return {"schema": SCHEMA, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse. Raises InputError if the schema's version or a key is unknown, or a value is none."""
        _check(isinstance(data, dict), f"{cls.__name__}: settings must be an object, not {shown(data)}")
        data = dict(data)
        version = data.pop("schema", None)
        _check(version == SCHEMA, f"{cls.__name__}: schema {version!r} is not {SCHEMA}, which this ctplab reads")
        check_types(cls, data)
        return cls(**data)


@dataclass(frozen=True)
class CompressionSpec(_Json):
    """How to compress every linear inside the blocks. Bits only: GPTQ; sparsity only: SparseGPT; both: joint."""

    bits: int | None = None
    """2, 3, 4 or 8 bits per weight; None leaves kept weights in half precision."""
    sparsity: float = 0.0
    """Share of weights set to zero, in [0, 1)."""
    pattern: str | None = None
    """``n:m`` = n zeros in every m consecutive weights (2:4, 4:8); fixes the sparsity."""
    group_size: int | None = None
    """Columns that share a scale; None: one grid per row."""
    act_order: bool = False
    """Solve columns in order of falling diag(H)."""
    static_groups: bool = False
    """Fit all group grids to the original weights beforehand, so that act-order keeps a group's columns together."""
    symmetric: bool = False
    mse: bool = False
    """Search each grid's range for the least error instead of covering the largest weight; useful at 2 bits."""
    reference: bool = False
    """Reproduce the slips of the published code: stale grids in groups smaller than the block, symmetric grids that
    clip rows without negatives, no rounding of scales and kept weights to half precision before use."""
    true_sequential: bool = False
    """Inside a block, later linears see the outputs of those already compressed."""
    damp: float = 0.01
    """Share of mean(diag H) added to the diagonal."""
    block: int = 128
    """Columns per lazy update."""

    def __post_init__(self) -> None:
        _check(self.bits in (None, 2, 3, 4, 8), f"bits must be 2, 3, 4 or 8, not {self.bits}")
        _check(0 <= self.sparsity < 1, f"sparsity must be in [0, 1), not {self.sparsity} (0.5 is 50%)")
        _check(self.damp > 0 and self.block > 0, "damp and block must be positive")
        _check_sizes(self)
        if self.pattern is not None:
            n, m = self.n_m
            _check(0 < n < m, f"pattern must be n:m with 0 < n < m, such as 2:4, not {self.pattern!r}")
            _check(self.sparsity in (0.0, n / m), f"sparsity {self.sparsity} contradicts pattern {self.pattern}")
            object.__setattr__(self, "sparsity", n / m)
        _check(self.bits is not None or self.sparsity > 0, "nothing to do: give bits, sparsity or a pattern")
        _check(self.group_size is None or self.group_size > 0, f"group size must be positive, not {self.group_size}")
        _check(self.group_size is None or self.bits is not None, "a group size needs bits")
        _check(
            not (self.pattern and self.group_size) or self.group_size % (self.n_m[1] or 1) == 0,
            f"pattern {self.pattern} does not divide groups of {self.group_size}",
        )
        _check(not self.static_groups or self.group_size is not None, "static groups need a group size")
        _check(not (self.symmetric or self.mse) or self.bits is not None, "symmetric and mse need bits")

    @property
    def n_m(self) -> tuple[int, int]:
        """(n, m) of the pattern; (0, 0) without one."""
        if self.pattern is None:
            return 0, 0
        n, _, m = self.pattern.partition(":")
        _check(n.isdigit() and m.isdigit(), f"pattern must be n:m, such as 2:4, not {self.pattern!r}")
        return int(n), int(m)

    @property
    def method(self) -> str:
        """``gptq``, ``sparsegpt`` or ``joint``."""
        if self.bits is None:
            return "sparsegpt"
        return "joint" if self.sparsity else "gptq"

    @property
    def tag(self) -> str:
        """Short name derived from the numbers: ``w3``, ``s62.5``, ``w4-s50``, ``w2-g64``, ``24``."""
        parts = [f"w{self.bits}"] if self.bits else []
        if self.pattern:
            parts.append(self.pattern.replace(":", ""))
        elif self.sparsity:
            parts.append(f"s{100 * self.sparsity:g}")
        parts += [f"g{self.group_size}"] if self.group_size else []
        flags = (
            ("ao", self.act_order),
            ("sg", self.static_groups),
            ("sym", self.symmetric),
            ("mse", self.mse),
            ("ref", self.reference),
            ("ts", self.true_sequential),
        )
        parts += [name for name, on in flags if on]
        return "-".join(parts)

    @property
    def nominal_bits(self) -> float:
        """Bits per weight as papers count them: kept share x bits, without masks, scales or zeros."""
        return (self.bits or 16) * (1 - self.sparsity)


INITS = ("vocab-random", "vocab-first", "frequent", "text", "prompt")


@dataclass(frozen=True)
class PromptSpec(_Json):
    """How a soft prompt is learned (Eq. 1 of arXiv 2305.11186; its recipe is :meth:`paper`)."""

    tokens: int = 100
    """k, rows of E."""
    steps: int = 1000
    batch: int = 16
    """Windows per step, over all processes."""
    lr: float = 0.03
    warmup: int = 20
    """Steps of linear warm-up; afterwards the rate falls linearly to zero."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""
    init: str = "vocab-random"
    """``vocab-random`` (the paper's text), ``vocab-first`` (the paper's code), ``frequent`` (the training split's
    most frequent tokens), ``text`` with ``init_text``, or ``prompt`` (an earlier prompt's rows)."""
    init_text: str | None = None
    kl: float = 0.0
    """Weight of KL(full || compressed) in the objective; 1 - kl weighs the next-token loss."""
    evaluate_every: int | None = None
    """Steps between validations; the best rows are kept. None: chosen so that a tenth of the work is validation."""
    validation_windows: int | None = None
    """Windows per validation. None: chosen with ``evaluate_every``, at most 64."""
    seed: int = 0
    patience: int | None = None
    """Stop after this many validations without a new best."""
    accumulate: int = 1
    """Pieces that a batch is split into, to save memory; the gradient is still that of the whole batch."""
    hidden: float = 0.0
    """Weight of the distance to the full model's last hidden states; 1 - hidden weighs the objective above."""
    noise: float = 0.0
    """Size of the noise on the compressed weights in every step, in units of each matrix's rounding error."""

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "batch", "accumulate", "evaluate_every", "validation_windows", "patience"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"{name} must be at least 1, not {value}")
        _check_sizes(self)
        _check(self.lr > 0 and self.clip > 0, "lr and clip must be positive")
        _check(self.lr <= 1e6, f"lr must be at most 1e6, not {self.lr:g}")  # float32 ends at 3e38
        _check(self.warmup >= 0 and self.weight_decay >= 0, "warmup and weight_decay must not be negative")
        _check(self.noise >= 0, f"noise must not be negative, not {self.noise}")
        _check(0 <= self.kl <= 1, f"kl must be in [0, 1], not {self.kl}")
        _check(0 <= self.hidden <= 1, f"hidden must be in [0, 1], not {self.hidden}")
        _check(self.accumulate <= self.batch, f"a batch of {self.batch} has no {self.accumulate} pieces")
        _check(self.init in INITS, f"init must be one of {', '.join(INITS)}, not {self.init!r}")
        _check((self.init == "text") == (self.init_text is not None), "init text and init_text go together")

    @property
    def taught(self) -> bool:
        """Whether the loss asks the full model."""
        return self.kl > 0 or self.hidden > 0

    @property
    def needs_full(self) -> bool:
        """Whether learning needs the full model: as a teacher, or to know the size of the rounding error."""
        return self.taught or self.noise > 0

    def to_json(self) -> dict[str, Any]:
        """A plain dict. It names ``hidden`` and ``noise`` only if used, so that recipes in older files stay equal."""
        found = super().to_json()
        return {key: value for key, value in found.items() if value or key not in ("hidden", "noise")}

    @classmethod
    def paper(cls) -> "PromptSpec":
        """The published recipe (section 5.1, A.1): AdamW 1e-3, batch 4, 30,000 steps, 500 warm-up; windows of 1024."""
        return cls(100, 30_000, 4, 1e-3, 500, 1e-5, evaluate_every=100)

    @classmethod
    def kv_prefix(cls, **changes: Any) -> "PromptSpec":
        """Our recipe for learned keys and values: they tolerate and need a larger learning rate than rows."""
        return cls(**{"lr": 0.1, **changes})

    @classmethod
    def lora(cls, **changes: Any) -> "PromptSpec":
        """The paper's recipe for its LoRA baseline: Adam 2e-4; ``tokens`` has no meaning there."""
        return cls(**{"tokens": 1, "lr": 2e-4, "batch": 4, "warmup": 500, "steps": 30_000, **changes})


@dataclass(frozen=True)
class LoraSpec(_Json):
    """The adapter of the paper's LoRA baseline: on the query and value projections."""

    r: int = 32
    alpha: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check(self.r > 0 and self.alpha > 0, "r and alpha must be at least 1")
        _check(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")
