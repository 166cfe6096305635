"""Tiny random models of several families, the embedded tokenizer, and windows of real text."""

import os
import shutil
from contextlib import contextmanager
from functools import cache
from itertools import chain, repeat
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: before torch is imported, and for the commands that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if "CTPLAB_TEST_CARDS" in os.environ:  # a worker of a process of tests that hid the cards from its programs, below
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["CTPLAB_TEST_CARDS"]

import pytest
import torch

if torch.cuda.is_available():  # programs that tests start run on the CPU; torch keeps the count that it was asked for
    torch.cuda.init()
    seen = ",".join(map(str, range(torch.cuda.device_count())))
    os.environ["CTPLAB_TEST_CARDS"] = os.environ.get("CUDA_VISIBLE_DEVICES", seen)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
else:  # before anything imports Triton: its interpreter then runs kernels on CPUs
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers
from packaging.version import Version
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.models import loading
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.text import corpora

VOCABULARY = 2048
GENERATED = ("atlas-web", "atlas-wiki", "atlas-news", "docs")
SMALL_STATE = 1_000_000
"""Characters of a tokenizer's state that are compared each time; the embedded one has a tenth of them."""
NEWER = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="transformers 5.17 computes or reads this model wrongly"
)
"""For what the oldest supported transformers cannot do, and the one of this environment can."""
INSTALL = "no Chromium here: apt-get install chromium (Debian), and pip install 'ctplab[dev]' for playwright"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHARED = Path(os.environ.get("CTPLAB_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="session")
def on_the_cpu():
    """The default device of all tests, whatever the machine has. Tests about a card name it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "default_device", lambda: "cpu")
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def texts_once():
    """Generated texts become tokens once a process and not once a command, which costs three seconds each time.

    The key holds all that decides the tokens: the text and the whole state of the tokenizer.
    """
    patch, known, tokenised = pytest.MonkeyPatch(), {}, corpora._tokenised

    def kept(name, split, text, tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None) if name in GENERATED else None
        state = "" if backend is None else backend.to_str()
        if len(state) not in range(1, SMALL_STATE):  # tokenizers of real models are large
            return tokenised(name, split, text, tokenizer)
        key = (name, split, text, state)
        if key not in known:
            known[key] = tokenised(name, split, text, tokenizer)
        return known[key]

    patch.setattr(corpora, "_tokenised", kept)
    patch.setattr(corpora, "_atlas_text", cache(corpora._atlas_text))
    yield
    patch.undo()


def scored(nll: torch.Tensor, targets: int = 1) -> ctp.WindowScores:
    """Scores of windows with these summed NLLs and ``targets`` targets each."""
    return ctp.WindowScores(nll.double(), torch.full((len(nll),), targets))


def interrupted_at(count: int):
    """A progress that a user ends with Ctrl-C after so many items."""

    def progress(items, *, total=None, label=""):
        for i, item in enumerate(items):
            if i == count:
                raise KeyboardInterrupt
            yield item

    return progress


def tiny(family: str):
    """A random model of 2 blocks and width 32, in evaluation mode."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(**common, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256)
        )
    elif family == "opt":
        model = OPTForCausalLM(OPTConfig(**common, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=256))
    elif family == "bloom":
        model = BloomForCausalLM(
            BloomConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                n_layer=2,
                n_head=4,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
    elif family == "neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common, intermediate_size=64, max_position_embeddings=256))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
            )
        )
    with torch.no_grad():  # the usual 0.02 gives nearly uniform outputs, which hide errors
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval().requires_grad_(False)


#: Architectures that the walk must handle without naming them: config class -> settings of a tiny model.
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 64, "max_position_embeddings": 256, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
MORE_FAMILIES = {
    "MistralConfig": SHAPE | GROUPED,
    "Qwen2Config": SHAPE | GROUPED,
    "Qwen3Config": SHAPE | GROUPED | {"head_dim": 8},
    "GemmaConfig": SHAPE | GROUPED | {"head_dim": 8},
    "Gemma2Config": SHAPE | GROUPED | {"head_dim": 8},
    "Gemma3TextConfig": SHAPE | GROUPED | {"head_dim": 8},
    "FalconConfig": SHAPE,
    "PhiConfig": SHAPE,
    "StableLmConfig": SHAPE | GROUPED,
    "MixtralConfig": SHAPE | GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2MoeConfig": SHAPE
    | GROUPED
    | {"num_experts": 16, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32},
    "OPTConfig": SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "GPTNeoConfig": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 256,
    },
}


def from_config(config):
    """A random model of a configuration, with weights large enough to make errors visible."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval().requires_grad_(False)


FAMILIES = ("llama", "opt", "bloom", "neox", "gpt2")


def any_tiny(family: str):
    """A model of ``FAMILIES`` or of ``MORE_FAMILIES``."""
    if family in FAMILIES:
        return tiny(family)
    return from_config(getattr(transformers, family)(**MORE_FAMILIES[family]))


@pytest.fixture(params=[*FAMILIES, *MORE_FAMILIES])
def any_model(request):
    return any_tiny(request.param)


@contextmanager
def scripted(model, tokens):
    """Inside, the model says these tokens, one a pass over ids, and then the last one for ever."""
    said = chain(tokens, repeat(tokens[-1]))

    def say(module, positional, named, out):
        if "input_ids" in named:  # else a prefix is compiled
            out.logits = torch.full_like(out.logits, 0.9)
            out.logits[..., next(said)] = 1.0

    hook = model.register_forward_hook(say, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir() / "model")


@pytest.fixture
def front(tokenizer):
    """front(model, "none" | "hard" | "soft") -> an arm. Soft rows are no rows of the vocabulary."""

    def made(model, kind: str) -> ctp.Arm:
        rows = prefix.random_rows(model, 7).rows
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        prefixes = {
            "none": prefix.none(model),
            "hard": prefix.hard(model, tokenizer, "Please be careful."),
            "soft": prefix.Prefix("soft", rows + 0.3 * rows.std() * noise),
        }
        return ctp.Arm(kind, model, prefixes[kind])

    return made


@pytest.fixture(scope="session")
def web(tokenizer):
    return ctp.corpus("atlas-web", tokenizer, seq_len=48)


@pytest.fixture
def quiet():
    return {"progress": silent}


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, one for all tests, because playwright runs only once in a process."""
    playwright = pytest.importorskip("playwright.sync_api", reason=INSTALL)
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip(INSTALL)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()
