"""What llama.cpp is asked: tiny GGUF files of each family and each tokenizer rule, and SmolLM2, with our answers.

``python tests/interop/gguf_cases.py FOLDER`` imports each file and writes our logits and token ids into FOLDER/gguf;
``peer_llama_cpp.py`` answers for the same files in an environment of its own, and test_gguf.py compares.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_files import FAMILIES, MIXED, sentencepiece, write

import ctplab as ctp
from ctplab.models.known import MODELS
from ctplab.progress import silent

#: Besides the whole page: its lines, a text of control tokens, and nothing but a space.
TEXTS = [MIXED, *MIXED.splitlines(), "<s> a</s>b  <s>", " "]
#: One rule of each kind that is known to cut text, and sentencepiece with and without a first space.
RULES = {
    "gpt-2": {"tokenizer.ggml.pre": "gpt-2"},
    "smollm": {},
    "llama-bpe": {"tokenizer.ggml.pre": "llama-bpe"},
    "qwen2": {"tokenizer.ggml.pre": "qwen2"},
    "pieces": {"tokenizer": sentencepiece},
    "pieces-bare": {"tokenizer": sentencepiece, "tokenizer.ggml.add_space_prefix": False},
}


def answers(model, tokenizer, ids: torch.Tensor) -> dict:
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    return {"ids": ids.tolist(), "texts": [tokenizer(text)["input_ids"] for text in TEXTS], "logits": logits.numpy()}


def write_cases(folder: Path) -> None:
    """Write all cases into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {family: (family, {}) for family in FAMILIES}
    files |= {f"rule-{rule}": ("llama", extra) for rule, extra in RULES.items()}
    files |= {f"rule-{family}": (family, RULES["pieces-bare"]) for family in ("gemma2", "gemma3")}
    found = {}
    for name, (family, extra) in files.items():
        write(folder / f"{name}.gguf", family, "F32", **extra)  # llama.cpp rounds less the wider the weights
        ctp.import_model(folder / f"{name}.gguf", folder / name, progress=silent)
        model, tokenizer = ctp.load(folder / name, device="cpu")
        found[name] = answers(model, tokenizer, torch.arange(1, 200) * 7 % len(tokenizer))
    if MODELS["smollm2"].folder.is_dir():
        model, tokenizer = ctp.load("smollm2", device="cpu")
        found["smollm2"] = answers(model, tokenizer, ctp.corpus("docs", tokenizer, 200).test.windows[0])
    asked = {name: {key: found[name][key] for key in ("ids", "texts")} for name in found}
    np.savez(folder / "ours.npz", **{name: answer["logits"] for name, answer in found.items()})
    (folder / "asked.json").write_text(json.dumps({"texts": TEXTS, "cases": asked}))


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]) / "gguf")
