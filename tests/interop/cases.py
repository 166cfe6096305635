"""What the peers are asked: layers with their Hessians and grids, and exported checkpoints with our logits.

``python tests/interop/cases.py FOLDER`` writes them as safetensors; each peer answers in a file of its own from an
environment of its own (``make interop``), and test_interop.py compares. Nothing of theirs enters our dependencies.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import ctplab as ctp
from ctplab.compression import obs
from ctplab.models.anatomy import blocks, linears
from ctplab.progress import silent
from ctplab.specs import CompressionSpec

#: Settings whose codes must be the peers' own. ``reference``: fp32 scales and the published code's slips.
SOLVED = [
    CompressionSpec(bits=bits, reference=True, **extra)
    for bits in (2, 3, 4, 8)
    for extra in (
        {},
        {"symmetric": True},
        {"group_size": 32},
        {"group_size": 128},
        {"group_size": 64, "act_order": True},
        {"group_size": 32, "act_order": True, "static_groups": True},
        {"act_order": True},
        {"mse": True},
    )
]
PRUNED = [
    CompressionSpec(reference=True, **extra)
    for extra in (
        {"sparsity": 0.5},
        {"sparsity": 0.625},
        {"sparsity": 0.75},
        {"pattern": "2:4"},
        {"pattern": "4:8"},
    )
]
EXPORTED = [
    (CompressionSpec(bits=bits, **extra), to)
    for bits in (2, 3, 4, 8)
    for extra, to in (({"symmetric": True, "group_size": 64}, "gptq"), ({}, "gptq_v2"))
]


def layers() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(W, H) of a random layer with correlated inputs, and of two real ones on their real inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(256, 256, generator=generator) / 16
    X = mix @ torch.randn(256, 2048, generator=generator)
    found = {"random": (torch.randn(96, 256, generator=generator), 2 * X @ X.T / 2048)}
    model, tokenizer = ctp.load("atlas", device="cpu")
    windows = ctp.corpus("atlas-web", tokenizer, 128).train.sample(32)
    name, block = blocks(model)[1]
    inputs: dict[str, torch.Tensor] = {}
    for unit, layer in linears(block).items():
        layer.register_forward_pre_hook(lambda _, args, unit=unit: inputs.update({unit: args[0].flatten(0, 1)}))
    with torch.no_grad():
        model(windows)
    for unit in ("self_attn.q_proj", "mlp.down_proj"):
        X = inputs[unit].T
        found[f"{name}.{unit}"] = (linears(block)[unit].weight.detach(), 2 * X @ X.T / X.shape[1])
    return found


def write(folder: Path) -> None:
    """Write all cases into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, asked = {}, []
    for name, (W, H) in layers().items():
        tensors |= {f"{name}/W": W, f"{name}/H": H}
        for spec in [*SOLVED, *PRUNED]:
            if spec.group_size and W.shape[1] % spec.group_size:
                continue
            case = f"{name}/{spec.tag}"
            ours = obs.solve(W, H, spec)
            tensors[f"{case}/W_hat"] = ours.W_hat
            if ours.codes is not None and ours.scale is not None and ours.zero is not None:
                # grids that do not move with the columns, for peers that take theirs from outside
                tensors |= {f"{case}/codes": ours.codes, f"{case}/scale": ours.scale, f"{case}/zero": ours.zero}
            asked.append(f"{case}")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "cases.safetensors")

    model, tokenizer = ctp.load("atlas", device="cpu")
    text = ctp.corpus("atlas-web", tokenizer, 128)
    windows = text.train.sample(32)
    for spec, to in EXPORTED:
        small, report = ctp.compress(model, windows, spec, progress=silent)
        ours = folder / "ours" / spec.tag
        ctp.save(small, ours, tokenizer, report, "atlas")
        out = folder / "exported" / f"{spec.tag}--{to}"
        ctp.export(ours, out, to)
        ids = text.test.windows[:4]
        with torch.no_grad():
            logits = ctp.load(ours, device="cpu")[0](ids).logits
        save_file({"ids": ids.contiguous(), "logits": logits.contiguous()}, out / "expected.st")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
