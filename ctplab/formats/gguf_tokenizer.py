"""The tokenizer of a GGUF file: text must fall into the same ids as under llama.cpp.

The file names how text is cut before the merges (``tokenizer.ggml.pre``); transformers knows some of these names and
cuts as GPT-2 does under all others, which shifts tokens wherever digits or spaces meet. Here each name has its rule,
and a name without one is refused.
"""

from typing import Any

from ctplab.errors import InputError
from ctplab.formats.gguf_checks import Header
from ctplab.models import Tokenizer

#: Names under which transformers cuts as llama.cpp does ('make interop').
KNOWN = {"llama-bpe", "llama3", "llama-v3", "qwen2", "deepseek-r1-qwen", "gpt-2"}
#: Names of GPT-2's rule with each digit on its own.
DIGITS = {"smollm", "starcoder", "refact", "command-r"}


def mend(tokenizer: Tokenizer, header: Header) -> None:
    """Make ``tokenizer`` cut text as the file says. Raises InputError if its rule or vocabulary cannot be had."""
    name, metadata = header.file.name, header.metadata
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2":
        if rule in DIGITS:
            _split_digits(tokenizer)
        elif rule not in KNOWN:
            known = ", ".join(sorted(KNOWN | DIGITS))
            raise InputError(f"{name} cuts text by the rule {rule!r}, which is not known here; known are {known}")
    elif kind != "llama":
        raise InputError(f"{name} has a tokenizer of the kind {kind!r}; gpt2 (bytes) and llama (sentencepiece) work")
    _check_vocabulary(tokenizer, metadata["tokenizer.ggml.tokens"], name)


def _split_digits(tokenizer: Tokenizer) -> None:
    from tokenizers import pre_tokenizers

    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _check_vocabulary(tokenizer: Tokenizer, tokens: list[str], name: str) -> None:
    """Each id must have the token that the file gives it; Gemma's runs of spaces are spelt with bars."""
    found = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for index, (mine, theirs) in enumerate(zip(found, tokens, strict=True)):
        if mine != theirs and mine != theirs.replace(" ", "\u2581"):
            raise InputError(f"{name}: token {index} would be {mine!r} instead of {theirs!r}")
    if len(tokenizer) != len(tokens):
        raise InputError(f"{name}: the tokenizer would have {len(tokenizer)} tokens instead of {len(tokens)}")
