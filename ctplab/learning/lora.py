"""The paper's LoRA baseline (section 5.5) through PEFT, learned by the same loop on the same tokens as the prompts.

PEFT is an optional extra. The base weights are frozen; :meth:`Adapter.remove` restores the model.
"""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctplab import tensor_files
from ctplab.disk import write_json
from ctplab.errors import InputError
from ctplab.learning.learned import Learned
from ctplab.learning.loop import finish, take_steps
from ctplab.learning.teacher import Teacher
from ctplab.models import Model
from ctplab.models.anatomy import blocks, linears
from ctplab.progress import Progress, bar
from ctplab.prompts.compiled import KV
from ctplab.specs import LoraSpec, PromptSpec
from ctplab.text.corpora import Split
from ctplab.text_files import read_json

#: Names of the query and value projections: separate, or fused with the keys (BLOOM, GPT-NeoX, Falcon; GPT-2; Phi-3).
APART = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))
FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv")
MANIFEST = "adapter.json"


def targets(model: Model) -> list[str]:
    """Names of the query and value projections in the model's blocks. Raises InputError if none is known."""
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
    """A LoRA adapter inside ``model``, to be learned. A is random and B is zero, so it has no effect at first."""

    k = 0
    random = True
    rows = None

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
            warnings.simplefilter("ignore")  # PEFT uses old names of transformers, and notes GPT-2's transposed layers
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
        """Return no keys and values. Dropout is active only while gradients are recorded, that is, in learning."""
        for module in self._dropouts:
            module.train(torch.is_grad_enabled())
        return []

    def frozen(self, values: dict[str, Tensor]) -> Weights:
        return Weights("lora", {name: value.float().cpu().clone() for name, value in values.items()})

    def put(self, weights: Weights) -> Model:
        """Put these weights into the adapter and return its model, for an arm without a prefix."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(weights.tensors[name])
        for module in self._dropouts:
            module.eval()
        return self.model

    def save(self, folder: Path, made_from: dict[str, Any], learned: Learned[Weights]) -> None:
        """Write PEFT's own files, then ``adapter.json``: the inputs that the adapter was made from, and its curve."""
        info = {
            "made_from": made_from,
            "best_step": learned.best_step,
            "validation_nll": learned.best_validation,
            "stopped": learned.stopped,
            "curve": [vars(step) for step in learned.steps],
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns if the base has no name
            self._peft.save_pretrained(str(folder), save_embedding_layers=False)
        write_json(info, folder / MANIFEST)

    def load(self, folder: Path) -> None:
        """Load the weights of a saved adapter into this one."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft, tensor_files.read(folder / "adapter_model.safetensors", finite=True))

    def remove(self) -> Model:
        """Remove the adapter and return the model, with the same modules and weights as before."""
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
    """Learn an adapter that is already in its model, and leave the best weights in it.

    :meth:`PromptSpec.lora` gives the paper's recipe. ``spec.tokens`` and ``spec.init`` have no effect here.
    """
    initial = adapter.frozen({name: p.detach() for name, p in adapter.parameters.items()})
    result = Learned(initial, initial)
    steps = take_steps(adapter, [adapter.model], train, validation, spec, result, teacher=teacher, state=state)
    finish(steps, result, spec, progress)
    adapter.put(result.prefix)
    return result


def same_budget(spec: PromptSpec) -> PromptSpec:
    """The recipe of an adapter to compare with a prompt of ``spec``: the same steps, text, loss and validations.

    The learning rate is a fifth of the prompt's, which is the ratio of the paper's two rates (2e-4 and 1e-3).
    """
    return replace(spec, tokens=1, lr=spec.lr / 5, weight_decay=0.0, init="vocab-random", init_text=None)


def made_from(folder: Path) -> dict[str, Any] | None:
    """The inputs that a saved adapter was made from, or None if ``folder`` holds no finished adapter."""
    try:
        return read_json(folder / MANIFEST)["made_from"]
    except (InputError, KeyError):
        return None
