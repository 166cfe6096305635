"""Estimate the memory for learning a prompt: bytes of tensors by kind, from a model's shape and the settings.

The estimate follows ``learning/step.py`` through LLaMA-shaped blocks (RMSNorm, attention without a mask, gated MLP),
prefix and texts in one long row. It counts the tensors that autograd keeps, those that one block's backward pass adds,
and one chunk of logits. Models that need two passes take a few percent more: the keys and values of the prefix, and
their gradients. With ``card`` it counts what a card learns with: fused layers, a fused loss, larger chunks of logits,
half of a large batch at a time (``learning/fused``, ``learning/pieces``), and what cuBLAS keeps. It does not count the
process itself, a GPU's context (about half a GB), the allocator's slack, the training text or a teacher.

Symbols: d width, f MLP width, V vocabulary, k prompt rows, n tokens per window, B windows at once, s bytes per number.
"""

from dataclasses import dataclass, replace
from typing import Any

from ctplab.errors import InputError
from ctplab.learning.objective import CACHED
from ctplab.learning.pieces import CARD_CHUNK, CHUNK, pieces_on_card

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUBLAS = 3 << 25
"""What cuBLAS keeps on a card: torch gives it 32 MB for each of the three streams that run a step, try it and record it
(NVIDIA Hopper; 8 MB on others)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only model."""

    layers: int
    width: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    kv_width: int
    """Width of the keys, and of the values; less than ``width`` if several query heads share a key head."""
    gated: bool = True
    """Three MLP matrices instead of two."""
    tied: bool = False
    """The head is the embedding matrix."""

    @property
    def block_weights(self) -> int:
        """Number of weights in the linear layers of one block."""
        return self.width * (2 * self.width + 2 * self.kv_width + (3 if self.gated else 2) * self.inner)

    @property
    def embedding_weights(self) -> int:
        """Number of weights in embeddings and head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.block_weights + self.embedding_weights


#: TinyLlama, and LLaMA as in arXiv 2302.13971 and 2307.09288.
SHAPES = {
    "1b": Shape(22, 2048, 5632, 32_000, 256),
    "7b": Shape(32, 4096, 11_008, 32_000, 4096),
    "13b": Shape(40, 5120, 13_824, 32_000, 5120),
    "70b": Shape(80, 8192, 28_672, 32_000, 1024),
}


def shape_of(config: Any) -> Shape:
    """Read the shape from a Hugging Face configuration. Raises InputError if it gives no width or number of layers."""
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
    """k; 0 if something else is learned (``learning/memory_tuned``)."""
    seq_len: int = 1024
    """n"""
    batch: int = 4
    """B: windows in one forward pass (batch / accumulate)."""
    dtype: str = "bfloat16"
    bits: int | None = None
    """Bits of packed weights. None: dense weights."""
    group_size: int | None = 128
    recompute: bool = True
    card: bool = False
    """On an NVIDIA or AMD card with Triton, and with memory to spare for the largest chunks of logits."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 0), ("seq_len", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.dtype not in SIZES:
            raise InputError(f"dtype must be one of {', '.join(SIZES)}, not {self.dtype!r}")
        if self.bits not in (None, 2, 3, 4, 8):
            raise InputError(f"bits must be 2, 3, 4 or 8, not {self.bits}")


@dataclass(frozen=True)
class Memory:
    """Bytes by kind."""

    weights: int
    prompt: int
    """E in fp32 and in the model's dtype."""
    optimizer: int
    """The gradient of what is learned, and AdamW's two moments."""
    kept: int
    """Tensors that the forward pass keeps for the backward pass."""
    block: int
    """Tensors that the backward pass of one block adds, including a weight matrix that it unpacks."""
    logits: int
    """One chunk of logits with its softmax and gradient. They are freed before the backward pass."""
    libraries: int = 0
    """What a card's libraries keep."""
    changes: int = 0
    """What is tuned in the model, and the best of it so far (``learning/memory_tuned``)."""

    @property
    def total(self) -> int:
        """Bytes at the peak, which is either in the loss or in the last block's backward pass."""
        always = self.weights + self.prompt + self.changes + self.optimizer + self.kept + self.libraries
        return always + max(self.block, self.logits)


def learning(shape: Shape, settings: Settings) -> Memory:
    """The memory of one learning step at its peak."""
    s, k, d = SIZES[settings.dtype], settings.tokens, shape.width
    if settings.card:
        halves = pieces_on_card(shape.layers * shape.block_weights, settings.batch, settings.seq_len)
        settings = replace(settings, batch=-(-settings.batch // halves))
    one, rows = _saved(shape, settings, s), _rows(settings)
    last = rows * d * (2 * s + (s if settings.card else 4))  # the last states, their gradient, the last norm's input
    return Memory(
        weights=_weights(shape, settings, s),
        prompt=k * d * (4 + s),
        optimizer=3 * k * d * 4,
        kept=shape.layers * (s * d * rows if settings.recompute else one) + last,
        block=(one if settings.recompute else 0) + _backward(shape, settings, s),
        logits=_logits(shape, settings, s),
        libraries=CUBLAS if settings.card else 0,
    )


def _rows(settings: Settings) -> int:
    """Length of the row in which the prefix and all texts stand."""
    return settings.tokens + settings.batch * settings.seq_len


def _weights(shape: Shape, settings: Settings, s: int) -> int:
    linears = shape.layers * shape.block_weights
    if settings.bits is None:
        return linears * s + shape.embedding_weights * s
    group = settings.group_size or shape.width
    return linears * settings.bits // 8 + linears // group * 3 + shape.embedding_weights * s  # fp16 scale, uint8 zero


def _saved(shape: Shape, settings: Settings, s: int) -> int:
    """Bytes that autograd saves in one block.

    These are the inputs of both norms, in fp32; queries, keys, values and the attention's output, with a copy of the
    prefix in front of every text; and in the MLP the gate, its activation and the up projection. Autograd does not save
    the inputs of frozen weights. A card's norms keep their input in the model's dtype, and its MLP no activation.
    """
    placed = settings.batch * (settings.tokens + settings.seq_len)
    norms = 2 * shape.width * (s if settings.card else 4)
    mlp = s * shape.inner * (1 if not shape.gated else 2 if settings.card else 3)
    return _rows(settings) * (norms + mlp) + placed * s * 2 * (shape.width + shape.kv_width)


def _backward(shape: Shape, settings: Settings, s: int) -> int:
    """Bytes of the gradients alive at once in the MLP, the widest part, or of one gradient and an unpacked matrix."""
    rows = _rows(settings)
    gradients = rows * s * (3 if shape.gated else 2) * shape.inner
    if settings.bits is None:
        return rows * s * shape.width + gradients
    # in fp32, plus its codes or its copy in dtype; on a card one kernel writes it
    unpacked = shape.width * shape.inner * (s if settings.card else 4 + (s if s < 4 else 1))
    return rows * s * shape.width + max(gradients, rows * s * shape.inner + unpacked)


def _logits(shape: Shape, settings: Settings, s: int) -> int:
    """Bytes of a chunk in the model's dtype, which the gradient overwrites.

    On a CPU some rows of it at a time are there in fp32 too if that differs, and as the softmax.
    """
    chunk = CARD_CHUNK if settings.card else CHUNK
    rows = min(settings.batch * settings.seq_len, max(1, chunk // shape.vocabulary))
    few = 0 if settings.card else min(rows, max(1, CACHED // shape.vocabulary))
    return shape.vocabulary * (rows * s + few * (4 + (4 if s < 4 else 0)))
