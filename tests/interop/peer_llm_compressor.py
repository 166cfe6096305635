"""llm-compressor 0.14's answers: its GPTQ on our grids, and its SparseGPT. Runs in its own environment."""

import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from safetensors.torch import load_file, save_file


def quantise(W: torch.Tensor, H: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Per-row grids handed over; its codes are signed, so zeros shift by half the range."""
    settings = QuantizationArgs(num_bits=bits, symmetric=False, strategy="channel")
    shifted = (zero - 2 ** (bits - 1)).to(torch.int8)
    found = quantize_weight(W[None].clone(), H[None].clone(), scale[None], shifted[None], None, settings)
    return found[0][0]


def prune(W: torch.Tensor, H: torch.Tensor, tag: str) -> torch.Tensor:
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = W.clone()
    first = tag.split("-")[0]
    n, m = (int(first[0]), int(first[1])) if first.isdigit() else (0, 0)
    sparsity = 0.0 if m else float(first[1:]) / 100
    return sparsify_weight(layer, {layer: H.clone()}, sparsity, n, m, 128, 0.01, False)[1]


def main(folder: Path) -> None:
    cases = load_file(folder / "cases.safetensors")
    answers = {}
    for key in cases:
        name, _, rest = key.partition("/")
        tag, _, what = rest.partition("/")
        if what != "W_hat":
            continue
        W, H = cases[f"{name}/W"], cases[f"{name}/H"]
        if tag[0] != "w":
            answers[f"{name}/{tag}"] = prune(W, H, tag)
        elif tag.split("-")[1:] == ["ref"]:
            case = f"{name}/{tag}"
            answers[case] = quantise(W, H, cases[f"{case}/scale"], cases[f"{case}/zero"], int(tag[1]))
    save_file(
        {key: value.detach().contiguous() for key, value in answers.items()}, folder / "llm_compressor.safetensors"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
