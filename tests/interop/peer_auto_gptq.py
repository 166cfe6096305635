"""auto-gptq 0.7.1's answers: its solver on our layers, and the logits of our checkpoints as it loads them.

Runs in its own environment. Its solver calls ``torch.cuda.synchronize``, which a CPU build does not have.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.cuda.synchronize = lambda *args: None
torch.cuda.empty_cache = lambda: None

from auto_gptq import AutoGPTQForCausalLM  # noqa: E402
from auto_gptq.quantization import GPTQ  # noqa: E402


def solve(W: torch.Tensor, H: torch.Tensor, tag: str) -> torch.Tensor:
    """W as auto-gptq quantises it with the settings that ``tag`` spells out."""
    words = tag.split("-")
    group = next((int(word[1:]) for word in words if word[0] == "g"), -1)
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = W.clone()
    solver = GPTQ(layer)
    solver.quantizer.configure(int(words[0][1:]), perchannel=True, sym="sym" in words, mse="mse" in words)
    solver.H, solver.nsamples = H.clone(), 1
    solver.fasterquant(128, 0.01, group, "ao" in words, "sg" in words)
    return layer.weight.data


def main(folder: Path) -> None:
    cases = load_file(folder / "cases.safetensors")
    answers = {}
    for key in cases:
        name, _, rest = key.partition("/")
        tag, _, what = rest.partition("/")
        if what == "codes":
            answers[f"{name}/{tag}"] = solve(cases[f"{name}/W"], cases[f"{name}/H"], tag).contiguous()
    for path in sorted((folder / "exported").iterdir()):
        if path.name.endswith("--gptq") and not path.name.startswith("w3"):  # it has no 3-bit layer for a CPU
            model = AutoGPTQForCausalLM.from_quantized(
                str(path), device="cpu", disable_exllama=True, disable_exllamav2=True, use_safetensors=True
            )
            with torch.no_grad():
                answers[f"logits/{path.name}"] = model(input_ids=load_file(path / "expected.st")["ids"]).logits.float()
    save_file(answers, folder / "auto_gptq.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
