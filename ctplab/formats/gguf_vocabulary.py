"""A tokenizer in GGUF's words: what llama.cpp must know to cut any text into the same ids.

Two kinds can be said. Bytes joined by merges (``gpt2``), cut beforehand by a rule that llama.cpp has under a name; and
characters joined by scores, with bytes for what is rare (``llama``, sentencepiece's). Any other is refused: a model
whose text is cut differently answers, and answers worse.
"""

import json
from dataclasses import dataclass
from typing import Any

from ctplab.errors import InputError
from ctplab.models import Tokenizer

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RULES = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}
"""Regular expressions that cut text -> llama.cpp's name of the rule."""
_WHOLE_WORDS = {"llama-bpe"}
"""Rules under which llama.cpp takes a word that is a token as it is, without merges."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


@dataclass(frozen=True)
class Vocabulary:
    """``kind``: gpt2 or llama. ``rule``: how text is cut first. ``tokens``, ``types``, ``scores``: an entry an id."""

    kind: str
    rule: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    space_first: bool
    """A text begins as if a space stood before it (``llama``)."""


def of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary with ``size`` ids. Raises InputError if GGUF has no words for the tokenizer."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{type(tokenizer).__name__} has no tokenizer.json, from which GGUF's vocabulary is made")
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InputError(f"llama.cpp has no rule for a tokenizer of the type {model.get('type')}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens, types = _tokens(tokenizer, whole, size)
    if model.get("byte_fallback"):
        return Vocabulary("llama", "default", tokens, types, _scores(tokens, merges), None, _space_first(whole))
    rule = _rule(whole)
    if bool(model.get("ignore_merges")) != (rule in _WHOLE_WORDS):
        raise InputError(f"llama.cpp's rule {rule!r} merges otherwise than this tokenizer: it would cut text otherwise")
    return Vocabulary("gpt2", rule, tokens, types, None, merges, False)


def _tokens(tokenizer: Tokenizer, whole: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    names = {i: name for name, i in tokenizer.get_vocab().items()}
    if names and max(names) >= size:
        raise InputError(f"the tokenizer has {max(names) + 1} tokens, the model {size} rows")
    special = {entry["id"]: entry["special"] for entry in whole["added_tokens"]}
    fallback, unknown = bool(whole["model"].get("byte_fallback")), whole["model"].get("unk_token")
    tokens, types = [], []
    for i in range(size):
        name = names.get(i, f"[PAD{i}]")
        tokens.append(name)
        if i not in names:
            types.append(_UNUSED)
        elif fallback and name == unknown:
            types.append(_UNKNOWN)
        elif i in special:
            types.append(_CONTROL if special[i] else _USER_DEFINED)
        else:
            types.append(_BYTE if fallback and len(name) == 6 and name.startswith("<0x") else _NORMAL)
    if len(set(tokens)) < size:
        raise InputError("the tokenizer has a token that is called like a padding row, [PAD...]")
    return tokens, types


def _rule(whole: dict[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer cuts text before it merges bytes."""
    normalizer = whole.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":  # NFC leaves nearly all text as it is
        raise InputError(f"llama.cpp has no rule for a tokenizer that changes text ({normalizer['type']})")
    first: dict[str, Any] = whole.get("pre_tokenizer") or {"type": "none"}
    steps: list[dict[str, Any]] = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    if steps[-1]["type"] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        before, gpt2 = steps[:-1], steps[-1].get("use_regex", True)
        if gpt2 and not before:
            return "gpt-2"
        if gpt2 and before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
        if not gpt2 and len(before) == 1 and before[0]["type"] == "Split":
            rule = _RULES.get(before[0]["pattern"].get("Regex", ""))
            if rule and (before[0]["behavior"], before[0]["invert"]) in (("Isolated", False), ("Removed", True)):
                return rule
    raise InputError(
        "llama.cpp has no rule that cuts text as this tokenizer does; known are GPT-2's, with or without "
        "single digits, Llama 3's and Qwen2's"
    )


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The earlier a merge makes a token, the higher the token's score: llama.cpp joins in the order of scores."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _space_first(whole: dict[str, Any]) -> bool:
    """Whether the tokenizer writes a space before a text. Raises InputError if it does not mark spaces with bars."""
    found = json.dumps([whole.get("normalizer"), whole.get("pre_tokenizer")], ensure_ascii=False)
    if "\u2581" not in found:
        raise InputError("llama.cpp has no rule for a tokenizer that falls back to bytes and does not mark spaces")
    return '"Prepend"' in found or '"prepend_scheme": "always"' in found or '"prepend_scheme": "first"' in found
