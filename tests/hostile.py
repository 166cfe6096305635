"""Small folders and files of every kind that the lab reads, and ways to damage them, drawn by hypothesis."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import from_config
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

import ctplab as ctp
from ctplab.formats.tuned import fold
from ctplab.learning.learned import Learned, Step
from ctplab.progress import silent

ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 10**30, -(10**9), 0.5, 1e308, float("nan"), float("inf"), "", "x", "..", "../../escaped",
    "/escaped", "a\nb", "\x00", "\ud800", "y" * 5000, [], [[]], {}, {"a": {"b": []}}, [1, "2", None],
]  # fmt: skip
"""Values where others are meant."""
WORDS = [f"Word{i} is a thing in the world that number {7 * i} likes." for i in range(400)]


def build(home: Path, tokenizer) -> None:
    """One of each kind under ``home``."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256}
    model = from_config(LlamaConfig(vocab_size=len(tokenizer), intermediate_size=64, **shape, **ends))
    model.save_pretrained(home / "dense")
    tokenizer.save_pretrained(home / "dense")
    shutil.copytree(home / "dense", home / "sharded")
    (home / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(home / "sharded", max_shard_size="100KB")
    (home / "t.txt").write_text("\n\n".join(WORDS))
    (home / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in WORDS))
    (home / "t.json").write_text(json.dumps([{"text": text} for text in WORDS]))
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]
    (home / "chat.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for _ in WORDS))
    (home / "candidates.txt").write_text("Be careful.\nBe quick.\n")
    windows = ctp.corpus(f"file:{home / 't.txt'}", tokenizer, 32).train.sample(4, 0)
    spec = ctp.CompressionSpec(bits=4, sparsity=0.5)
    ctp.compress_to(home / "dense", home / "small", tokenizer, windows, spec, device="cpu", progress=silent)
    plain = ctp.CompressionSpec(bits=4, symmetric=True)
    ctp.compress_to(home / "dense", home / "plain", tokenizer, windows, plain, device="cpu", progress=silent)
    ctp.export(home / "plain", home / "gptq", "gptq")
    rows = ctp.Prefix("soft", torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    start = ctp.Prefix("init", rows.rows + 1, (1, 2, 3, 4))
    steps = [Step(step, 4.0, 0.1, 0.1, 1.0, 4.0 - step) for step in range(2)]
    learned = Learned(rows, start, best_validation=3.0, validation_tokens=100, steps=steps)
    text = ctp.corpus(f"file:{home / 't.txt'}", tokenizer, 32)
    made = {"base": "dense", "tag": "w4-s50", "corpus": text.name, "corpus_fingerprint": text.train.fingerprint}
    small, _ = ctp.load(home / "small", device="cpu")
    ctp.save_prompt(learned, home / "prompt", ctp.PromptSpec(tokens=4), small, tokenizer, **made, seq_len=32)
    ctp.save_prompt(learned, home / "other", ctp.PromptSpec(tokens=4), small, tokenizer, **made, seq_len=32)
    norms = {f"norm:{name}": 2 * p for name, p in model.named_parameters() if p.ndim == 1}
    fold(home / "small", home / "tuned", norms, {"what": ["norms"], "from": str(home / "small")})
    (home / "questions.jsonl").write_text("\n".join(json.dumps({"question": q, "answer": "It."}) for q in WORDS[:2]))
    ctp.export_prompt(ctp.load_prompt(home / "prompt"), home / "peft", model, "peft")
    (home / "sweep.toml").write_text(
        f'models = ["{home}/dense"]\ncorpora = ["file:{home}/t.txt"]\nspecs = [{{bits = 4}}]\nseq_len = 32\n'
        "windows = 2\nseeds = [0, 1]\n[calibration]\nsamples = 4\n[prompts.a]\ntokens = 4\nsteps = 2\nbatch = 2\n"
    )


SHORT = ("--windows", "1", "--seq-len", "16")
COMMANDS: dict[str, Callable[[Path], list[tuple[Any, ...]]]] = {
    "dense": lambda at: [("info", at / "dense"), ("score", at / "dense", *text(at), *SHORT)],
    "sharded": lambda at: [("info", at / "sharded"), ("score", at / "sharded", *text(at), *SHORT)],
    "small": lambda at: [("info", at / "small"), ("score", at / "small", *text(at), *SHORT)],
    "gptq": lambda at: [("info", at / "gptq"), ("score", at / "gptq", *text(at), *SHORT)],
    "prompt": lambda at: [
        ("info", at / "prompt"),
        ("score", at / "small", "--prompt", at / "prompt", *text(at), *SHORT),
        ("recover", "--full", at / "dense", "--compressed", at / "small", "--prompt", at / "prompt", *text(at), *SHORT,
         "--skip", "full+own,lora", "--out", at / "out"),
        ("worth", at / "prompt", "--model", at / "small", *text(at), *SHORT, "--rows", "0,1", "--out", at / "out"),
        ("cut", at / "prompt", "--model", at / "small", *text(at), *SHORT, "--keep", "2", "--choose", "1", "--out",
         at / "out"),
        ("choose", at / "small", "--prompts", at / "prompt", at / "other", *text(at), *SHORT, "--look", "4"),
        ("pace", "--full", at / "dense", "--compressed", at / "small", "--prompts", at / "prompt"),
    ],
    "tuned": lambda at: [
        ("tune", at / "small", "--like", at / "tuned", "--out", at / "out"),
        ("recover", "--full", at / "dense", "--compressed", at / "small", "--prompt", at / "prompt", *text(at), *SHORT,
         "--skip", "full+own,lora", "--tuned", at / "tuned", "--out", at / "out"),
    ],
    "questions.jsonl": lambda at: [
        ("compare", "--full", at / "dense", "--compressed", at / "small", "--prompt", at / "prompt", "--questions",
         at / "questions.jsonl", "--max-new-tokens", "2", "--fidelity", "--out", at / "out"),
    ],
    "peft": lambda at: [("import", "prompt", at / "peft", "--model", at / "dense", "--out", at / "out")],
    "t.txt": lambda at: [("score", at / "dense", *text(at), *SHORT)],
    "t.jsonl": lambda at: [("score", at / "dense", *text(at, "t.jsonl"), *SHORT)],
    "t.json": lambda at: [("score", at / "dense", *text(at, "t.json"), *SHORT)],
    "chat.jsonl": lambda at: [("score", at / "dense", *text(at, "chat.jsonl"), *SHORT)],
    "candidates.txt": lambda at: [
        ("hard", at / "dense", "--candidates", at / "candidates.txt", *text(at), *SHORT, "--out", at / "out" / "h.json")
    ],
    "sweep.toml": lambda at: [("sweep", at / "sweep.toml", "--dry-run", "--out", at / "out")],
}  # fmt: skip
"""Kind -> the commands that read it, in a copy of the home at ``at``."""


def text(at: Path, name: str = "t.txt") -> tuple[str, str]:
    return "--corpus", f"file:{at / name}"


def damage(path: Path, draw: Callable) -> str:
    """Damage one file in one way; says which."""
    ways = [empty, cut, flipped, pointer, deep, folder_instead, dangling, utf16, marked]
    if path.suffix == ".json":
        ways += [edited] * 8
    if path.suffix == ".jsonl":
        ways += [line_edited] * 8
    if path.suffix == ".safetensors":
        ways += [retyped, spoiled, lost, more] * 2
    if path.suffix == ".toml":
        ways += [toml_edited] * 8
    way = draw(st.sampled_from(ways))
    way(path, draw)
    return f"{path.name} {way.__name__}"


def empty(path, draw):
    path.write_bytes(b"")


def cut(path, draw):
    whole = path.read_bytes()
    path.write_bytes(whole[: draw(st.integers(0, len(whole) - 1))])


def flipped(path, draw):
    whole = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        whole[draw(st.integers(0, min(len(whole), 4000) - 1))] = draw(st.integers(0, 255))
    path.write_bytes(whole)


def pointer(path, draw):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def deep(path, draw):
    path.write_text("[" * 100_000)


def folder_instead(path, draw):
    path.unlink()
    path.mkdir()


def dangling(path, draw):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def utf16(path, draw):
    path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16"))


def marked(path, draw):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _places(value: Any, at: tuple = ()) -> list[tuple]:
    """The keys that lead to every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in ((*at, key), *_places(item, (*at, key)))]


def _put(data: Any, draw: Callable) -> None:
    places = _places(data)
    *way, last = draw(st.sampled_from(places[:400]))
    for key in way:
        data = data[key]
    if draw(st.booleans()) and isinstance(data, dict):
        del data[last]
    else:
        data[last] = draw(st.sampled_from(ODD))


def edited(path, draw):
    data = json.loads(path.read_text())
    _put(data, draw)
    path.write_text(json.dumps(data))


def line_edited(path, draw):
    lines = path.read_text().split("\n")
    number = draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[number])
    _put(row, draw)
    lines[number] = json.dumps(row)
    path.write_text("\n".join(lines))


def toml_edited(path, draw):
    lines = path.read_text().split("\n")
    places = [i for i, line in enumerate(lines) if "=" in line]
    number = draw(st.sampled_from(places))
    odd = ["inf", "nan", "-1", "0", "99999999999999", '"x"', "[]", "[[]]", "{}", "true", '["../.."]', '"\\u0000"']
    lines[number] = f"{lines[number].split('=')[0]}= {draw(st.sampled_from(odd))}"
    path.write_text("\n".join(lines))


def _tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def _one(tensors, draw):
    return draw(st.sampled_from(sorted(tensors)))


def retyped(path, draw):
    """Another dtype or shape."""

    def change(tensors):
        name = _one(tensors, draw)
        kind = draw(st.sampled_from([torch.int64, torch.uint8, torch.bool, torch.float64, torch.bfloat16, None]))
        t = tensors[name]
        tensors[name] = t.flatten()[: max(1, t.numel() - 1)] if kind is None else t.float().to(kind)

    _tensors(path, change)


def spoiled(path, draw):
    """NaN, infinite or other numbers."""

    def change(tensors):
        t = tensors[name := _one(tensors, draw)].clone().flatten()
        odd = draw(st.sampled_from([float("nan"), float("inf"), 60000.0, -1.0]))
        t[: t.numel() // 2 + 1] = odd if t.is_floating_point() else draw(st.sampled_from([0, 1, 255]))
        tensors[name] = t.view_as(tensors[name])

    _tensors(path, change)


def lost(path, draw):
    _tensors(path, lambda tensors: tensors.pop(_one(tensors, draw)))


def more(path, draw):
    _tensors(path, lambda tensors: tensors.update({"stranger": torch.ones(3), "stranger::codes": torch.ones(2)}))
