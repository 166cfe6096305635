"""Hugging Face causal language models: load one, find its parts, tell it from another."""

from typing import Any

#: transformers models and tokenizers come without usable static types.
Model = Any
Tokenizer = Any
