"""The paper's LoRA baseline (section 5.5) through PEFT, learned by the same loop on the same tokens as prompts are.

PEFT is an optional extra. The base weights are frozen; :meth:`Adapter.remove` puts the model back as it was.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ctplab.corpora import Split
from ctplab.errors import InputError
from ctplab.models import Model, blocks, linears
from ctplab.progress import Progress, bar
from ctplab.prompts.kv import KV
from ctplab.prompts.loop import Learned, finish, run
from ctplab.prompts.teacher import Teacher
from ctplab.specs import LoraSpec, PromptSpec

#: Names of the query and value projections: apart, or fused with the keys (BLOOM, GPT-NeoX, Falcon; GPT-2; Phi-3).
APART = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))
FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv")


def targets(model: Model) -> list[str]:
    """Names of the query and value projections in the model's blocks. Raises InputError where none is known."""
    found = {name.rpartition(".")[2] for name in linears(blocks(model)[0][1])}
    for pair in APART:
        if set(pair) <= found:
            return list(pair)
    fused = [name for name in FUSED if name in found]
    if fused:
        return fused
    raise InputError(f"no query and value projections among {', '.join(sorted(found))}: LoRA does not know this model")


@dataclass(frozen=True)
class Weights:
    """An adapter's learned matrices by name, fp32."""

    name: str
    tensors: dict[str, Tensor] = field(repr=False)


class Adapter:
    """A LoRA adapter inside ``model``, as something to learn. Its A is random and its B zero: no effect at first."""

    k = 0

    def __init__(self, model: Model, spec: LoraSpec, seed: int = 0) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise InputError("the LoRA baseline needs PEFT: pip install 'ctplab[baselines]'") from None
        try:
            names = targets(model)
        except InputError:
            if any(type(module).__name__ == "PackedLinear" for module in model.modules()):
                raise InputError(
                    "LoRA cannot be put on packed layers, which PEFT does not know; load the model without packed=True"
                ) from None
            raise
        config = LoraConfig(
            task_type="CAUSAL_LM", r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=names
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks transformers by old names, and notes that GPT-2 is transposed
            torch.manual_seed(seed)
            self._peft = get_peft_model(model, config)
        self.model: Model = model
        self._dropouts = [
            module
            for name, layers in model.named_modules()
            if name.endswith("lora_dropout")
            for module in layers.modules()
            if isinstance(module, nn.Dropout)
        ]
        self.parameters = {name: p for name, p in self._peft.named_parameters() if p.requires_grad}
        for p in self.parameters.values():
            p.data = p.data.float()
        self._peft.eval()

    def kv(self, model: Model) -> KV:
        """Nothing stands in front. Dropout belongs to learning only, which is where gradients are recorded."""
        for module in self._dropouts:
            module.train(torch.is_grad_enabled())
        return []

    def frozen(self, values: dict[str, Tensor]) -> Weights:
        return Weights("lora", {name: value.float().cpu().clone() for name, value in values.items()})

    def put(self, weights: Weights) -> Model:
        """The model with these weights in its adapter, for an arm with no prefix."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(weights.tensors[name])
        for module in self._dropouts:
            module.eval()
        return self.model

    def remove(self) -> Model:
        """The model without the adapter: the very modules and weights it had before."""
        self._peft.unload()
        return self.model.requires_grad_(False)


def learn_lora(
    adapter: Adapter,
    train: Split,
    validation: Split,
    spec: PromptSpec,
    *,
    teacher: Model | Teacher | None = None,
    state: Path | None = None,
    progress: Progress = bar,
) -> Learned[Weights]:
    """Learn an adapter that is already in its model, and leave the best weights in it. The paper's recipe:
    :meth:`PromptSpec.lora`; ``spec.tokens`` and ``spec.init`` have no meaning here."""
    initial = adapter.frozen({name: p.detach() for name, p in adapter.parameters.items()})
    result = Learned(initial, initial)
    steps = run(adapter, [adapter.model], train, validation, spec, result, teacher=teacher, state=state)
    finish(steps, result, spec, progress)
    adapter.put(result.prefix)
    return result
