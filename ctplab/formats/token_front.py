"""A tokenizer that knows soft tokens and puts them in front of every text and every conversation.

Rows stand before everything, and a text behind them has no start token of its own: so they were learned. Texts get
them from the post-processor, which a caller switches off with ``add_special_tokens=False``; conversations from the chat
template, whose text readers encode that way. So each path adds them once.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ctplab.disk import write_json, write_text
from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.text_files import read_json

NAME = "<|soft_{}|>"
_RESERVED = re.compile(r"[<\[]\|?(reserved|unused)[a-z_]*\d+\|?[>\]]")
"""What models call rows that they keep free: ``<|reserved_special_token_7|>`` (Llama 3), ``<unused7>`` (Gemma)."""
_PROBES = ("The capital", " 12 apples,\nand")
"""Texts on which a written tokenizer is compared with the one that it came from."""


def added(tokenizer: Tokenizer, k: int, *, reserved: bool, taken: Collection[int]) -> tuple[Backend, dict[str, int]]:
    """A copy of the tokenizer's backend with k soft tokens, and these in order: name -> id.

    ``reserved``: tokens that the vocabulary keeps free are used first, under the names they have. ``taken``: ids that
    must not be used. Raises InputError if the tokenizer cannot take special tokens, or has soft tokens already.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{type(tokenizer).__name__} has no tokenizer.json, so it cannot take special tokens")
    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    before = backend.get_vocab()
    if NAME.format(0) in before:
        raise InputError("this tokenizer has soft tokens already: export from the model that the folder came from")
    free = _reserved(tokenizer, before, taken)[:k] if reserved else []
    names = free + [NAME.format(i) for i in range(len(free), k)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    vocabulary, old = backend.get_vocab(), set(before.values())
    soft = {name: vocabulary[name] for name in names}
    if len(set(soft.values())) < k or any(soft[name] in old for name in names[len(free) :]):
        raise InputError("this tokenizer's vocabulary has holes: it gives new tokens ids that others have")
    return backend, soft


def _reserved(tokenizer: Tokenizer, vocabulary: dict[str, int], taken: Collection[int]) -> list[str]:
    """Free tokens by id. One that the chat template names, or that has a role, is not free."""
    template = json.dumps(tokenizer.chat_template or "")
    found = [name for name, i in vocabulary.items() if _RESERVED.fullmatch(name) and i not in taken]
    found = [name for name in found if name not in template and name not in tokenizer.all_special_tokens]
    return sorted(found, key=vocabulary.__getitem__)


def in_front(backend: Backend, soft: dict[str, int]) -> Backend:
    """The same tokenizer with a post-processor that writes the tokens ``soft`` before a text, and nothing else."""
    whole = json.loads(backend.to_str())
    steps = [{"SpecialToken": {"id": name, "type_id": 0}} for name in soft]
    texts = [{"Sequence": {"id": which, "type_id": i}} for i, which in enumerate("AB")]
    template = {
        "type": "TemplateProcessing",
        "single": [*steps, texts[0]],
        "pair": [*steps, *texts],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in soft.items()},
    }
    kept = [step for step in _steps(whole.get("post_processor")) if step["type"] == "ByteLevel"]  # trims offsets
    whole["post_processor"] = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    return Backend.from_str(json.dumps(whole))


def _steps(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return [s for p in processor["processors"] for s in _steps(p)] if processor["type"] == "Sequence" else [processor]


def chat_template(template: Any, soft: dict[str, int]) -> Any:
    """The same chat template, or templates by name, with the tokens in front; None stays None."""
    if isinstance(template, dict):
        return {name: chat_template(each, soft) for name, each in template.items()}
    return None if template is None else "".join(soft) + template


def write(tokenizer: Tokenizer, backend: Backend, soft: dict[str, int], folder: Path, prepend: str) -> None:
    """Write the tokenizer files: ``backend`` with the settings of ``tokenizer``. Raises InputError as the disk does."""
    templates = tokenizer.chat_template
    if prepend == "always":
        backend = in_front(backend, soft)
        tokenizer.chat_template = chat_template(templates, soft)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers says that a disk is full with a bare Exception
        raise InputError(f"cannot write {folder}: {error}") from error
    finally:
        tokenizer.chat_template = templates
    write_text(backend.to_str(), folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json", large=True)
    for key in ("add_bos_token", "add_eos_token", "added_tokens_decoder", "auto_map", "backend"):
        settings.pop(key, None)  # some classes write a post-processor of their own from these
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in every version
    settings["padding_side"] = "left"  # generation needs it
    settings["pad_token"] = settings.get("pad_token") or settings.get("eos_token")
    write_json({key: value for key, value in settings.items() if value is not None}, folder / "tokenizer_config.json")
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)  # other writings of the same, without the new tokens


def check(folder: Path, tokenizer: Tokenizer, soft: dict[str, int], prepend: str) -> list[str]:
    """Read the written tokenizer as others do and compare it with ``tokenizer``; returns what a user should know.

    Raises InputError if a text does not become the soft tokens and its own tokens.
    """
    from transformers import AutoTokenizer

    try:
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as for all tokenizers: many types, one line
        raise InputError(f"this tokenizer cannot take special tokens: {str(error).splitlines()[0]}") from error
    always, ids = prepend == "always", list(soft.values())
    for text in _PROBES:
        want = list(tokenizer(text, add_special_tokens=not always)["input_ids"])
        if list(again(text)["input_ids"]) != ([*ids, *want] if always else want):
            raise InputError("this tokenizer cannot take special tokens: it writes others into every text")
    if not always or not isinstance(tokenizer.chat_template, str):
        return []
    try:
        talk = [{"role": "user", "content": _PROBES[0]}]
        want, found = (list(t.apply_chat_template(talk)["input_ids"]) for t in (tokenizer, again))
    except Exception:  # templates refuse what they do not like in any type, and need not like our conversation
        return ["the chat template was not checked: it does not take a conversation of one question"]
    if found != [*ids, *want]:
        return ["behind the soft tokens the chat template's first word is split differently from how it is alone"]
    return []
