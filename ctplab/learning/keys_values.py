"""Keys and values in front of every layer, learned or taken from the full model.

Prefix tuning (arXiv 2101.00190) learns them freely: k·layers·2·width numbers instead of k·d, at the inference cost of
a compiled prompt. They fit one checkpoint only. IntactKV (arXiv 2403.01241) computes them with the full model, so that
at least the prompt is free of compression error.
"""

from pathlib import Path

import torch
from torch import Tensor

from ctplab.learning.learned import Learned
from ctplab.learning.loop import finish, take_steps
from ctplab.learning.rows import initial_rows
from ctplab.learning.teacher import Teacher
from ctplab.models import Model, Tokenizer
from ctplab.models.anatomy import embeddings
from ctplab.progress import Progress, bar
from ctplab.prompts.compiled import KV, compile_prefix, pairs
from ctplab.prompts.prefix import AnyPrefix, KVPrefix, Prefix
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split


class KeysValues:
    """The keys and values (1, heads, k, head_dim) of every layer as fp32 parameters to learn."""

    random = False
    rows = None

    def __init__(self, initial: KVPrefix, model: Model) -> None:
        self.k = initial.k
        self.layers = len(initial.kv)
        device = embeddings(model).device
        self.parameters = {
            f"{layer}.{name}": tensor.float().to(device, copy=True).requires_grad_(True)
            for layer, pair in enumerate(initial.kv)
            for name, tensor in zip(("keys", "values"), pair, strict=True)
        }

    def _pairs(self, values: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple((values[f"{layer}.keys"], values[f"{layer}.values"]) for layer in range(self.layers))

    def kv(self, model: Model) -> KV:
        dtype = embeddings(model).dtype
        return [(keys.to(dtype), values.to(dtype)) for keys, values in self._pairs(self.parameters)]

    def frozen(self, values: dict[str, Tensor]) -> KVPrefix:
        return KVPrefix("kv", self._pairs({name: v.float().cpu().clone() for name, v in values.items()}))


@torch.no_grad()
def as_keys_and_values(model: Model, prefix: AnyPrefix, name: str) -> KVPrefix:
    """Compute the keys and values of a prefix with ``model``; they are in fp32 on the CPU."""
    found = pairs(model, compile_prefix(model, prefix))
    return KVPrefix(name, tuple((keys.float().cpu(), values.float().cpu()) for keys, values in found))


def intact(full: Model, prefix: Prefix) -> KVPrefix:
    """Compute the prefix's keys and values with the *full* model, for use in front of the compressed one."""
    return as_keys_and_values(full, prefix, "intact")


def learn_kv(
    model: Model,
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: Model | Teacher | None = None,
    earlier: AnyPrefix | None = None,
    state: Path | None = None,
    progress: Progress = bar,
) -> Learned[KVPrefix]:
    """Learn keys and values; :meth:`PromptSpec.kv_prefix` gives the recipe.

    They start from a compiled prompt: from ``earlier`` if given (a soft or hard prompt, an :func:`intact` one, or keys
    and values), else from the rows that ``spec.init`` names. Random keys learn worse.
    """
    start = initial_rows(model, spec, tokenizer, train) if earlier is None else earlier
    initial = as_keys_and_values(model, start, "init")
    result = Learned(as_keys_and_values(model, start, "kv"), initial)
    steps = take_steps(
        KeysValues(initial, model), [model], train, validation, spec, result, teacher=teacher, state=state
    )
    return finish(steps, result, spec, progress)
