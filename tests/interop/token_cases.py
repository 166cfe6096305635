"""What servers are asked: folders with soft tokens and GGUF files, with our arm's own answers.

``python tests/interop/token_cases.py FOLDER`` writes them into FOLDER/tokens. ``peer_tokens.py`` (GPTQModel through
transformers), ``peer_llama_cpp_tokens.py`` and ``peer_vllm.py`` answer in environments of their own;
test_interop_tokens.py compares.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers
from conftest import GROUPED, SHAPE, SHARED, from_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats import prompt_file
from ctplab.models.loading import local_folder
from ctplab.progress import silent

TEXTS = ["The capital of France is", "In 1912, a ship", "Gold has the atomic number 79 and", "She said  that\n\nhe'd"]
LENGTH = 64
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
#: Tiny random models: everything that has a tensor, a key or an order of rows of its own in a GGUF file.
TINY = {
    "llama": ("LlamaConfig", {"attention_bias": True, "tie_word_embeddings": False}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"vocab_size": 2056, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": False}),
    "pieces": ("LlamaConfig", {}),  # with a tokenizer of sentencepiece's kind
}


def write_arm(folder: Path, saved: prompt_file.SavedPrompt, home: Path, weights: str = "dense") -> dict:
    """A folder with soft tokens, its GGUF file, and what our arm answers."""
    found = ctp.export_tokens(saved, home, folder, weights=weights)
    if weights == "dense":
        ctp.export_gguf(folder, folder.with_name(f"{folder.name}-gguf"), progress=silent)
    model, tokenizer = ctp.load(home, device="cpu")
    plain = {"max_new_tokens": LENGTH, "raw": True, "start": "none"}
    answers = ctp.generate(ctp.Arm("soft", model, saved.prefix), tokenizer, TEXTS, **plain)
    ids = [found["ids"] + tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return {"front": "".join(found["tokens"]), "ids": ids, "answers": [answer.text for answer in answers]}


def smollm2(folder: Path) -> tuple[prompt_file.SavedPrompt, Path] | None:
    """SmolLM2 at 3 bits and its prompt; None if either is not here. Few windows: this is no measurement."""
    path = SHARED / "models" / "smollm2-prompts" / "w3-nll.safetensors"
    try:
        home = local_folder("smollm2")
    except ctp.InputError:
        return None
    if not path.exists():
        return None
    tokenizer = ctp.load_tokenizer(home)
    windows = ctp.corpus("docs", tokenizer, 512).train.sample(16)
    ctp.compress_to(home, folder, tokenizer, windows, ctp.CompressionSpec(bits=3), progress=silent)
    rows = ctp.Prefix("soft", load_file(path)["E"])
    about = {"base": "smollm2", "tag": "w3", **prompt_file.made_for(ctp.load(folder, device="cpu")[0], tokenizer)}
    return prompt_file.SavedPrompt(rows, None, about), folder


def pieces() -> PreTrainedTokenizerFast:
    """Characters joined by merges, bytes for the rest, bars for spaces; as many tokens as the tiny models have."""
    text = " ".join(TEXTS)
    marked = "\u2581" + text.replace(" ", "\u2581")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for character in sorted(set(marked)):
        vocabulary.setdefault(character, len(vocabulary))
    merges = [(a, b) for word in sorted(set(marked.split("\u2581"))) for a, b in ((word[:1], word[1:2]),) if b]
    merges += [("\u2581", a + b) for a, b in merges]
    for a, b in merges:
        vocabulary.setdefault(a + b, len(vocabulary))
    merges = [pair for pair in merges if all(part in vocabulary for part in pair)]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@torch.no_grad()
def write_tiny(folder: Path, name: str) -> dict:
    """A random model as GGUF, with our token ids and, for the first text, our logits."""
    kind, settings = TINY[name]
    config = getattr(transformers, kind)(
        **SHAPE | GROUPED | {"hidden_size": 64, "tie_word_embeddings": True} | settings
    )
    model = from_config(config)
    for parameter in model.parameters():
        parameter.copy_((parameter + torch.randn_like(parameter) / 4 if parameter.ndim == 1 else parameter).half())
    model.save_pretrained(folder)
    own = pieces() if name == "pieces" else ctp.load_tokenizer(data_dir() / "model")
    own.save_pretrained(folder)
    ctp.export_gguf(folder, folder.with_name(f"{name}-gguf"), progress=silent)
    tokenizer = ctp.load_tokenizer(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {"ids": ids, "logits": model(torch.tensor(ids[:1])).logits[0].numpy()}


def write(folder: Path) -> None:
    """Write all cases into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shipped = ctp.load_prompt(data_dir() / "prompt")
    arms = {"atlas": write_arm(folder / "atlas", shipped, data_dir() / "w4-s55")}
    model, tokenizer = ctp.load("atlas", device="cpu")
    windows = ctp.corpus("atlas-web", tokenizer, 128).train.sample(32)
    spec = ctp.CompressionSpec(bits=4, symmetric=True, group_size=64)
    small, report = ctp.compress(model, windows, spec, progress=silent)
    ctp.save(small, folder / "w4", tokenizer, report, "atlas")
    arms["atlas-gptq"] = write_arm(folder / "atlas-gptq", shipped, folder / "w4", "gptq")
    if (found := smollm2(folder / "w3")) is not None:
        arms["smollm2"] = write_arm(folder / "smollm2", *found)
    tiny = {name: write_tiny(folder / name, name) for name in TINY}
    np.savez(folder / "ours.npz", **{name: answer.pop("logits") for name, answer in tiny.items()})
    (folder / "asked.json").write_text(json.dumps({"texts": TEXTS, "length": LENGTH, "arms": arms, "tiny": tiny}))


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "tokens")
