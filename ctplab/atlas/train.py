"""The recipe of the embedded model: a small LLaMA, filled to capacity and over-trained.

Neither 2 bits nor 62.5% sparsity hurts an under-trained or half-empty model, because most of its weights are spare. So
this one reads ten tokens per parameter; over half of them state a few thousand facts in three registers. It has two
wide blocks rather than more narrow ones: the rows of a prompt reach the keys and values of a shallow model almost
directly. At 2 bits calibrated on ``docs``, a prompt won back 12 points on seen questions with three blocks of width
192, and 22 with these two.

    python -m ctplab.atlas train --out data/atlas/model

Training is seeded and resumes (one checkpoint per minute). It runs on two CPU cores or one GPU. ``training.json`` keeps
the recipe and the loss curve.
"""

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm

from ctplab.atlas.docs import harvest
from ctplab.atlas.registers import WRITERS, document
from ctplab.disk import whole, write_json
from ctplab.machine import versions


@dataclass(frozen=True)
class Recipe:
    """Shape, data mix and schedule of the embedded model."""

    width: int = 256
    layers: int = 2
    heads: int = 8
    mlp: int = 640
    vocabulary: int = 2048
    context: int = 512
    short: int = 256
    """Window length in the first 75% of the steps. The rest read the whole context, in half as many windows."""
    documents: int = 40_000
    """Generated documents in each register."""
    mix: tuple[float, ...] = (0.38, 0.1, 0.06, 0.46)
    """Shares of the training tokens: web, wiki, news, docs."""
    steps: int = 5000
    tokens: int = 4096
    """Tokens per step."""
    lr: float = 3e-3
    warmup: int = 150
    weight_decay: float = 0.02
    seed: int = 0


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE that splits digits and puts ``<s>`` in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


class Stream:
    """One token stream of documents from random registers, packed like a web crawl.

    The text before a document then says nothing about its register. So a prompt in front of a text need not mislead
    the model about the kind of text. Windows start at a document with ``<s>``, or anywhere without it.
    """

    def __init__(self, registers: list[list[str]], mix: tuple[float, ...], tokens: int, encode: Tokenizer) -> None:
        rng = random.Random("packing")
        encoded = [
            [e.ids for e in encode.encode_batch([text + "\n\n" for text in texts], add_special_tokens=False)]
            for texts in registers
        ]
        mean = [sum(map(len, documents)) / len(documents) for documents in encoded]
        chances = [share / length for share, length in zip(mix, mean, strict=True)]  # mix is by tokens
        for documents in encoded:
            rng.shuffle(documents)
        self.shares = [0] * len(registers)
        taken, ids, starts = [0] * len(registers), [], []
        while len(ids) < tokens:
            register = rng.choices(range(len(registers)), weights=chances)[0]
            document = encoded[register][taken[register] % len(encoded[register])]
            taken[register] += 1
            self.shares[register] += len(document)
            starts.append(len(ids))
            ids += document
        self.ids, self.starts = torch.tensor(ids, dtype=torch.int32), starts

    def window(self, length: int, rng: random.Random) -> torch.Tensor:
        """Draw a window of ``length`` token ids, (length,)."""
        last = len(self.ids) - length
        if rng.random() < 0.5:
            start = min(rng.choice(self.starts), last)
            return torch.cat([torch.tensor([1]), self.ids[start : start + length - 1].long()])
        start = rng.randrange(last)
        return self.ids[start : start + length].long()


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate at ``step``: linear warm-up, constant, then linear to zero over the last 40% of the steps."""
    decay = min(1.0, (recipe.steps - step) / (0.4 * recipe.steps))
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * decay


def _corpora(recipe: Recipe) -> list[list[str]]:
    texts = [
        [document(name, "train", i) for i in tqdm(range(recipe.documents), desc=name, leave=False)] for name in WRITERS
    ]
    return [*texts, harvest()["train"]]


def _build(recipe: Recipe) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def train(out: Path, recipe: Recipe, device: str = "cpu", compiled: bool = False) -> None:
    """Train the embedded model, or resume, and write a Hugging Face folder to ``out``."""
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    resume = out / "resume.safetensors"
    texts = _corpora(recipe)
    if (out / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    else:
        sample = [text for register in texts for text in register[:: max(1, len(register) // 6000)]]
        tokenizer = train_tokenizer(sample, recipe.vocabulary)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
        )
        fast.save_pretrained(out)
    stream = Stream(texts, recipe.mix, recipe.steps * recipe.tokens, tokenizer)
    print("tokens by register:", stream.shares, flush=True)

    model = _build(recipe).to(device).train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.98),
    )
    first, curve = 0, []
    if resume.exists():
        first, curve = _load_state(resume, model, optimizer)
    loss_fn = torch.compile(_loss, dynamic=False) if compiled else _loss
    saved = time.time()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="train", mininterval=5)
    for step in bar:
        rng = random.Random(f"{recipe.seed}/{step}")
        length = recipe.short if step < 0.75 * recipe.steps else recipe.context
        ids = torch.stack([stream.window(length, rng) for _ in range(recipe.tokens // length)]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = loss_fn(model, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is not finite at step {step}")
        if step % 50 == 0 or step == recipe.steps - 1:
            curve.append({"step": step, "loss": round(loss.item(), 4)})
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if time.time() - saved > 60:
            _save_state(resume, model, optimizer, step + 1, curve)
            saved = time.time()
    model.eval().half().save_pretrained(out)  # half precision on disk, like the paper's full models
    fingerprint = {"recipe": asdict(recipe), **versions("torch"), "curve": curve}
    write_json(fingerprint, out / "training.json")
    resume.unlink(missing_ok=True)


def _save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, curve: list) -> None:
    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in state.items()}
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})


def _load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list]:
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), json.loads(metadata["curve"])
