"""What a session names: a model in memory, and the three names that it works with."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and what its folder says about it."""

    name: str
    source: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    about: dict[str, Any]

    @property
    def tag(self) -> str:
        """How it was compressed: ``full``, ``w4-s50``, ``gptq``."""
        return str(self.about.get("tag") or self.about.get("quant_method") or "full")


@dataclass(frozen=True)
class Chosen:
    """What one session works with: names of loaded things."""

    full: str
    compressed: str
    prompt: str
