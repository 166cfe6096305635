"""The tokenizer of a GGUF file: text must fall into the same ids as under llama.cpp.

The file names how text is cut before the merges (``tokenizer.ggml.pre``). transformers knows some of these names and
cuts as GPT-2 does under all others, which shifts tokens wherever spaces meet digits; it also leaves merges on where
whole words come first, and adds GPT-2's end token to vocabularies that have none. Here each name has its rule, and a
name without one is refused.
"""

import json
from pathlib import Path
from typing import Any

from ctplab.errors import InputError
from ctplab.formats.gguf_checks import Header
from ctplab.models import Tokenizer

#: Names of one rule under llama.cpp, by the rule. A rule is here only if both give the same ids ('make interop').
GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}
DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}  # GPT-2's, digit by digit
LLAMA3 = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"}  # a word in the vocabulary stays whole
QWEN2 = {"qwen2", "deepseek-r1-qwen"}
BAR = "\u2581"
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(file: Path, header: Header) -> Tokenizer:
    """The tokenizer in ``file``. Raises InputError if its rule or vocabulary cannot be had as llama.cpp has it."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    told = header.metadata
    _check_rule(header)
    tokens = told["tokenizer.ggml.tokens"]
    made: Any = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    state = json.loads(made.backend_tokenizer.to_str())
    special = {mine: told.get(f"tokenizer.ggml.{theirs}_token_id") for mine, theirs in _SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(_mended(state, header))),
        chat_template=told.get("tokenizer.chat_template"),
        add_bos_token=told.get("tokenizer.ggml.add_bos_token", _starts_by_default(header)),
        add_eos_token=told.get("tokenizer.ggml.add_eos_token", False),
        **{mine: None if index is None else tokens[index] for mine, index in special.items()},
    )
    _check_vocabulary(tokenizer, tokens, header.file.name)
    return tokenizer


def _check_rule(header: Header) -> None:
    name, told = header.file.name, header.metadata
    kind, rule = told.get("tokenizer.ggml.model"), told.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        raise InputError(f"{name} has a tokenizer of the kind {kind!r}; gpt2 (bytes) and llama (sentencepiece) work")
    known = GPT2 | DIGITS | LLAMA3 | QWEN2
    if kind == "gpt2" and rule not in known:
        raise InputError(f"{name} cuts text by the rule {rule!r}; known are {', '.join(sorted(known))}")


def _starts_by_default(header: Header) -> bool:
    """Whether llama.cpp puts the start token first if the file does not say."""
    return header.metadata["tokenizer.ggml.model"] == "llama" or header.metadata["tokenizer.ggml.pre"] in LLAMA3


def _mended(state: dict[str, Any], header: Header) -> dict[str, Any]:
    """The tokenizer's own description with what transformers got wrong put right."""
    told = header.metadata
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < len(told["tokenizer.ggml.tokens"])]
    if told["tokenizer.ggml.model"] == "llama":
        return _with_spaces(state, told.get("tokenizer.ggml.add_space_prefix", True))
    state["model"]["ignore_merges"] = told["tokenizer.ggml.pre"] in LLAMA3
    if told["tokenizer.ggml.pre"] in DIGITS:
        bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        steps = [{"type": "Digits", "individual_digits": True}, bytewise]
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return state


def _with_spaces(state: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """Sentencepiece: a bar for each space, and one more in front of the text and after each control token."""
    bars: list[dict[str, Any]] = [{"type": "Prepend", "prepend": BAR}] if prefix else []
    bars.append({"type": "Replace", "pattern": {"String": " "}, "content": BAR})
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": BAR}, "content": " "}]
    spaces += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        spaces.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    state["normalizer"] = {"type": "Sequence", "normalizers": bars}
    state["pre_tokenizer"] = None
    state["decoder"] = {"type": "Sequence", "decoders": spaces}
    return state


def _check_vocabulary(tokenizer: Tokenizer, tokens: list[str], name: str) -> None:
    """Each id must have the token that the file gives it; Gemma's runs of spaces are spelt with bars."""
    found = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for index, (mine, theirs) in enumerate(zip(found, tokens, strict=True)):
        if mine != theirs and mine != theirs.replace(" ", BAR):
            raise InputError(f"{name}: token {index} would be {mine!r} instead of {theirs!r}")
    if len(tokenizer) != len(tokens):
        raise InputError(f"{name}: the tokenizer would have {len(tokenizer)} tokens instead of {len(tokens)}")
