"""What learning a prompt needs in memory, on paper: bytes of tensors by kind, from a model's shape and the settings.

Counted as ``prompts/loop.py`` does it through LLaMA-shaped blocks (RMSNorm, attention without a mask, gated MLP): what
autograd keeps, what one block's backward pass adds, and logits a chunk at a time. Not counted: the process itself, a
GPU's context (about half a GB), the allocator's slack, the training text, a teacher.

Symbols: d width, f MLP width, V vocabulary, k prompt rows, n tokens a window, B windows at a time, s bytes a number.
"""

from dataclasses import dataclass
from typing import Any

from ctplab.errors import InputError
from ctplab.learning.objective import CHUNK

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder-only model as numbers."""

    layers: int
    width: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    kv_width: int
    """Width of keys and of values: less than ``width`` where several queries share a key."""
    gated: bool = True
    """Three MLP matrices instead of two."""
    tied: bool = False
    """The head is the embedding matrix."""

    @property
    def block_weights(self) -> int:
        """Numbers in the linears of one block."""
        return self.width * (2 * self.width + 2 * self.kv_width + (3 if self.gated else 2) * self.inner)

    @property
    def embedding_weights(self) -> int:
        """Numbers in embeddings and head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.block_weights + self.embedding_weights


#: TinyLlama's, and LLaMA's of arXiv 2302.13971 and 2307.09288.
SHAPES = {
    "1b": Shape(22, 2048, 5632, 32_000, 256),
    "7b": Shape(32, 4096, 11_008, 32_000, 4096),
    "13b": Shape(40, 5120, 13_824, 32_000, 5120),
    "70b": Shape(80, 8192, 28_672, 32_000, 1024),
}


def shape_of(config: Any) -> Shape:
    """The shape in a Hugging Face configuration. Raises InputError where it names no width or layers."""
    config = config.get_text_config()
    width, layers = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
    if not width or not layers:
        raise InputError(f"{type(config).__name__} names no width and layers: give one of {', '.join(SHAPES)}")
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    names = ("intermediate_size", "ffn_dim", "n_inner")
    inner = next((value for name in names if (value := getattr(config, name, None))), 4 * width)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    gated = hasattr(config, "rms_norm_eps")
    return Shape(layers, width, inner, config.vocab_size, kv_heads * head, gated, config.tie_word_embeddings)


@dataclass(frozen=True)
class Settings:
    """How a prompt is learned."""

    tokens: int = 100
    """k"""
    seq_len: int = 1024
    """n"""
    batch: int = 4
    """B: windows that go through the model at a time (batch / accumulate)."""
    dtype: str = "bfloat16"
    bits: int | None = None
    """Packed weights of so many bits; None: dense ones."""
    group_size: int | None = 128
    recompute: bool = True

    def __post_init__(self) -> None:
        for name in ("tokens", "seq_len", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dtype not in SIZES:
            raise InputError(f"dtype must be one of {', '.join(SIZES)}, not {self.dtype!r}")
        if self.bits not in (None, 2, 3, 4, 8):
            raise InputError(f"bits must be 2, 3, 4 or 8, not {self.bits}")


@dataclass(frozen=True)
class Memory:
    """Bytes by kind."""

    weights: int
    prompt: int
    """E in fp32, and as the model reads it."""
    optimizer: int
    """E's gradient and AdamW's two moments."""
    kept: int
    """What the forward pass leaves for the backward pass."""
    block: int
    """What the backward pass of one block adds, a weight matrix unpacked there included."""
    logits: int
    """One chunk of logits with its softmax and gradient. Gone before the backward pass."""

    @property
    def total(self) -> int:
        """At the peak: either the loss or the last block's backward pass."""
        return self.weights + self.prompt + self.optimizer + self.kept + max(self.block, self.logits)


def learning(shape: Shape, settings: Settings) -> Memory:
    """What one step of learning needs at its peak."""
    s, k, d = SIZES[settings.dtype], settings.tokens, shape.width
    text = settings.batch * settings.seq_len
    one = _saved(shape, settings.batch, settings.seq_len, k, s) + _saved(shape, 1, k, 0, s)
    inputs = s * (text * d + k * (d + 2 * shape.kv_width))
    last = text * d * (2 * s + 4)  # the last states and their gradient; the last norm's input in fp32
    return Memory(
        weights=_weights(shape, settings, s),
        prompt=k * d * (4 + s),
        optimizer=3 * k * d * 4,
        kept=shape.layers * (inputs if settings.recompute else one) + last,
        block=(one if settings.recompute else 0) + _backward(shape, settings, s),
        logits=_logits(shape, text, s),
    )


def _weights(shape: Shape, settings: Settings, s: int) -> int:
    linears = shape.layers * shape.block_weights
    if settings.bits is None:
        return linears * s + shape.embedding_weights * s
    group = settings.group_size or shape.width
    return linears * settings.bits // 8 + linears // group * 3 + shape.embedding_weights * s  # fp16 scale, uint8 zero


def _saved(shape: Shape, batch: int, n: int, k: int, s: int) -> int:
    """What autograd saves in one block for ``n`` positions behind ``k``.

    The inputs of both norms in fp32; queries (with k rows of padding), keys, values and the attention's output; in the
    MLP the gate, its activation and what that multiplies. Frozen weights' inputs are not saved.
    """
    norms = 2 * 4 * shape.width * n
    attention = s * 2 * (shape.width + shape.kv_width) * (k + n)
    return batch * (norms + attention + s * (3 if shape.gated else 1) * shape.inner * n)


def _backward(shape: Shape, settings: Settings, s: int) -> int:
    """Gradients alive at one time in the MLP, where they are widest; or one of them and an unpacked matrix."""
    text = settings.batch * settings.seq_len
    gradients = text * s * (3 if shape.gated else 2) * shape.inner
    if settings.bits is None:
        return text * s * shape.width + gradients
    unpacked = shape.width * shape.inner * (4 + (s if s < 4 else 1))  # in fp32, beside its codes or its copy in dtype
    return text * s * shape.width + max(gradients, text * s * shape.inner + unpacked)


def _logits(shape: Shape, text: int, s: int) -> int:
    """In the model's dtype, in fp32 where that is another, and the softmax, which becomes the gradient."""
    rows = min(text, max(1, CHUNK // shape.vocabulary))
    return rows * shape.vocabulary * (s + (4 if s < 4 else 0) + 4)
