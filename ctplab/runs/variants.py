"""Compressions of one model that differ in one thing at a time: what a prompt learned on the first meets elsewhere.

    seed                 another draw of calibration windows         samples=64   their number
    text=docs            calibration text of another corpus          seq_len=512  their length
    dtype=bfloat16       the dtype that compression computes in
    act_order, damp=0.1, bits=4, group_size=64, ...                  any setting of :class:`CompressionSpec`
    bits=none+sparsity=0.5                                           several at once: another method

Each copy is a folder of its own and is made once; a killed run goes on at the block where it stopped.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

from ctplab.errors import InputError
from ctplab.formats.streaming import compress_to
from ctplab.models import Tokenizer
from ctplab.models.loading import DTYPES
from ctplab.specs import CompressionSpec
from ctplab.text.corpora import MOST_SAMPLES, corpus

KINDS = get_type_hints(CompressionSpec)


@dataclass(frozen=True)
class Making:
    """All that decides the weights of a compressed copy."""

    spec: CompressionSpec
    text: str
    """The corpus whose training split calibrates."""
    samples: int
    seq_len: int
    seed: int = 0
    dtype: str | None = None
    """None: that of the device."""


@dataclass(frozen=True)
class Variant:
    """One copy: its name, how it is made, and what that changes against the first, setting -> value."""

    name: str
    making: Making
    changed: Mapping[str, Any] = field(default_factory=dict)


def variants(making: Making, changes: Sequence[str]) -> list[Variant]:
    """Name what each of ``changes`` makes of ``making``; the first is ``same``, ``making`` itself.

    A change is ``NAME=VALUE`` or, for a switch, ``seed`` and ``dtype``, ``NAME`` alone (the other one). ``+`` joins
    several settings that change at once. Raises InputError if one names no setting, lacks a value, or changes nothing.
    """
    found = [Variant("same", making)]
    for change in changes:
        values = dict(_parsed(making, part) for part in re.split(r"\+(?=[a-z_-]+(?:[=+]|$))", change))
        own = {name: value for name, value in values.items() if name in KINDS}
        spec = replace(making.spec, **own)
        other = replace(making, spec=spec, **{name: value for name, value in values.items() if name not in KINDS})
        if other == making:
            raise InputError(f"{change!r} changes nothing: the model is made like that already")
        found.append(Variant(re.sub(r"[^\w.+-]+", "-", change).strip("-"), other, values))
    names = [variant.name for variant in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)}: named twice")
    return found


def vary(
    base: str | Path,
    out: Path,
    tokenizer: Tokenizer,
    making: Making,
    changes: Sequence[str],
    *,
    tell: Callable[[Variant, dict[str, Any]], object] = lambda variant, manifest: None,
    **settings: Any,
) -> dict[str, Path]:
    """Compress ``base`` into ``out/same`` as ``making`` says, and once more for each of ``changes`` (:func:`variants`).

    Returns name -> folder. ``tell`` is called with each finished copy and its manifest. ``settings`` are those of
    :func:`ctplab.formats.streaming.compress_to`, which says what is refused.
    """
    folders, texts = {}, cache(partial(corpus, tokenizer=tokenizer))
    planned = variants(making, changes)
    for variant in planned:  # a text that is not there is told before the first copy is made
        texts(variant.making.text, seq_len=variant.making.seq_len)
    for variant in planned:
        how, folder = variant.making, out / variant.name
        windows = texts(how.text, seq_len=how.seq_len).train.sample(how.samples, how.seed)
        tell(variant, compress_to(base, folder, tokenizer, windows, how.spec, dtype=how.dtype, **settings))
        folders[variant.name] = folder
    return folders


def _parsed(making: Making, part: str) -> tuple[str, Any]:
    """(setting, value) of ``NAME=VALUE`` or ``NAME``."""
    name, has_value, text = part.partition("=")
    name = name.strip().replace("-", "_")
    known = [*(f.name for f in fields(Making) if f.name != "spec"), *KINDS]
    if name not in known:
        raise InputError(f"{name!r} is nothing that copies can differ in; choose of {', '.join(known)}")
    if not has_value:
        return name, _other(making, name)
    if name == "text":
        return name, text
    if name == "dtype":
        if text not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {text!r}")
        return name, text
    if name in ("samples", "seq_len", "seed"):
        return name, _number(name, text, int, 0 if name == "seed" else 1, MOST_SAMPLES if name == "samples" else None)
    return name, _setting(name, text)


def _other(making: Making, name: str) -> Any:
    """The other value of a setting that is named without one."""
    if name == "seed":
        return making.seed + 1
    if name == "dtype":
        return "float32" if making.dtype == "bfloat16" else "bfloat16"
    if KINDS.get(name) is bool:
        return not getattr(making.spec, name)
    raise InputError(f"{name} needs a value: {name}=VALUE")


def _setting(name: str, text: str) -> Any:
    """A value of :class:`CompressionSpec`; ``none`` for a setting that may be left open."""
    kind = KINDS[name]
    if kind is bool:
        if text not in ("true", "false"):
            raise InputError(f"{name} must be true or false, not {text!r}")
        return text == "true"
    if text == "none" and kind not in (int, float):
        return None
    return text if kind == str | None else _number(name, text, float if kind is float else int)


def _number(name: str, text: str, kind: type, least: float | None = None, most: float | None = None) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise InputError(f"{name} must be a number, not {text!r}") from None
    if (least is not None and value < least) or (most is not None and value > most):
        raise InputError(
            f"{name} must be at least {least}{'' if most is None else f' and at most {most}'}, not {value}"
        )
    return value
