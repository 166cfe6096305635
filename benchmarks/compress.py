"""GPTQ, SparseGPT and joint compression of a 4-block LLaMA (768 / 2048) against llm-compressor and GPTQModel.

    python benchmarks/compress.py [--peers] [--dtype bfloat16] [--products float32] [--size 7b [--blocks 2]]
                                  [--device cuda]

Each contender runs in its own process on the same model folder and tokens (64 x 512); ``--peers`` needs the
environments of ``make bench``. Time is load + compress + save; memory is the process's peak (on a GPU, the card's).
Loss is the squared output error per token, summed over layers, on the full model's inputs; ``output`` is the relative
error of the logits, the joint effect of all layers. The floor is the time of the unavoidable matrix products of one
pass at this machine's measured rate in the format that ours multiplies in (see ``compression/products``): the forward
pass up to the last block's last input, and the Hessians. In float32 that is the faster one of torch's BLAS and oneDNN.
The choice of the format, and of what computes the products, is part of the time.

llm-compressor fits the grid of every group to the original weights (our ``static_groups``) and solves a block on the
dense block's activations; GPTQModel solves layer after layer (our ``true_sequential``, which takes one pass).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent
WINDOWS, LENGTH = 64, 512
SIZES = {"small": (768, 2048, 12, 4), "7b": (4096, 11008, 32, 32)}  # width, MLP, heads, blocks
W4 = {"bits": 4, "group_size": 128, "symmetric": True, "static_groups": True}
HEADLINE = "ctplab w4-g128, one pass"
OURS = {
    HEADLINE: W4 | {"true_sequential": True},
    "ctplab w4-g128, two passes": W4,
    "ctplab s50, one pass": {"sparsity": 0.5, "true_sequential": True},
    "ctplab w4-s50, one pass": {"bits": 4, "sparsity": 0.5, "true_sequential": True},
}
PEERS = {"llm-compressor w4-g128": "llm_compressor", "GPTQModel w4-g128": "gptqmodel"}


def make(folder: Path, dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    """Write the model (random weights, which do not affect time), a tokenizer, and the calibration tokens."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    from ctplab.disk import data_dir

    torch.manual_seed(0)
    width, mlp, heads, blocks = size
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.set_default_dtype(dtype)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_dir() / "model" / name, folder)
    save_file({"ids": torch.randint(3, 2048, (WINDOWS, LENGTH))}, folder / "tokens.st")


def ours(folder: Path, out: Path, settings: dict, device: str, products: str | None) -> None:
    """Run one of our contenders, in a fresh process, and print its JSON line."""
    import ctplab as ctp
    from ctplab.progress import silent

    ids = load_file(folder / "tokens.st")["ids"]
    dtype = json.loads((folder / "config.json").read_text())["dtype"]
    tokenizer = ctp.load_tokenizer(folder)
    began = time.perf_counter()
    spec = ctp.CompressionSpec(**settings)
    manifest = ctp.compress_to(
        folder, out, tokenizer, ids, spec, dtype=dtype, device=device, products=products, progress=silent
    )
    report(began, device, manifest["layers"][0]["products"])


def report(began: float, device: str, products: str) -> None:
    seconds = time.perf_counter() - began
    on_card = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    peak = on_card or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"seconds": seconds, "peak_mb": peak, "products": products}), flush=True)


def run(command: list[str], **environment: str) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(done.stdout[-1500:], done.stderr[-1500:], file=sys.stderr)
        return {"seconds": float("nan"), "peak_mb": float("nan")}
    return json.loads(lines[-1].removeprefix("RESULT "))


@torch.no_grad()
def errors(folder: Path, outs: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """For every contender: squared output error per token on the full model's inputs; relative error of the logits."""
    import ctplab as ctp
    from ctplab.models.anatomy import blocks, linears

    full, _ = ctp.load(folder, device="cpu", dtype="float32")
    ids = load_file(folder / "tokens.st")["ids"][:16]
    hessians: dict[str, torch.Tensor] = {}
    layers = {f"{name}.{unit}": layer for name, block in blocks(full) for unit, layer in linears(block).items()}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: hessians.update({name: args[0].flatten(0, 1).T @ args[0].flatten(0, 1)})
        )
        for name, layer in layers.items()
    ]
    logits = full(ids).logits
    for hook in hooks:
        hook.remove()
    original = {name: layer.weight.clone() for name, layer in layers.items()}
    found = {}
    for label, out in outs.items():
        if (out / "dense.safetensors").exists():
            weights = load_file(out / "dense.safetensors")
        elif out.exists():
            weights = ctp.load(out, device="cpu", dtype="float32")[0].state_dict()
        else:
            continue
        total = 0.0
        for name, layer in layers.items():
            layer.weight.copy_(weights[f"{name}.weight"])
            difference = original[name] - layer.weight
            total += float(((difference @ hessians[name]) * difference).sum()) / ids.numel()
        found[label] = total, float((full(ids).logits - logits).norm() / logits.norm())
    return found


def gemm_rate(dtype: torch.dtype, device: str, multiply: Callable[[Tensor, Tensor], Tensor] = F.linear) -> float:
    """Measured FLOP/s of a large matrix product on this machine."""
    a, b = torch.randn(4096, 2048).to(device, dtype), torch.randn(2048, 2048).to(device, dtype)
    float(multiply(a, b)[0, 0])
    began = time.perf_counter()
    for _ in range(5):
        c = multiply(a, b)
    float(c[0, 0])  # waits until a GPU is done
    return 5 * 2 * 4096 * 2048 * 2048 / (time.perf_counter() - began)


def gemm_rates(device: str) -> dict[str, float]:
    """GFLOP/s in float32 and in bfloat16, and in float32 by oneDNN, if the device is a CPU that has it."""
    from ctplab.compression import onednn

    rates = {name: gemm_rate(getattr(torch, name), device) / 1e9 for name in ("float32", "bfloat16")}
    if device == "cpu" and onednn.available():
        rates["float32 by oneDNN"] = gemm_rate(torch.float32, device, onednn.linear) / 1e9
    return rates


def machine(device: str) -> str:
    """The name of the card or the processor."""
    from ctplab.machine import processor

    return torch.cuda.get_device_name() if device == "cuda" else processor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--products", choices=("float32", "bfloat16"), help="what ours multiplies in (the faster)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="small", choices=tuple(SIZES))
    parser.add_argument("--blocks", type=int, help="fewer blocks than the size has")
    parser.add_argument("--peers", action="store_true", help="on the CPU, size small")
    parser.add_argument("--venvs", type=Path, default=HERE.parent, help="where .venv-llm-compressor and others are")
    parser.add_argument("--contender", nargs=3, metavar=("MODEL", "OUT", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        folder, out, settings = options.contender
        ours(Path(folder), Path(out), json.loads(settings), options.device, options.products)
        return
    if options.peers and (options.device, options.size) != ("cpu", "small"):
        parser.error("--peers run on the CPU, at size small")
    width, mlp, heads, blocks = SIZES[options.size]
    blocks = options.blocks or blocks
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make(folder, dtype, (width, mlp, heads, blocks))
        results, outs = {}, {}
        for label, settings in OURS.items():
            out = outs[label] = Path(scratch) / label.replace(" ", "-")
            call = ["--device", options.device, "--contender", str(folder), str(out), json.dumps(settings)]
            call += ["--products", options.products] if options.products else []
            cache = {"CTPLAB_CACHE": f"{out}-cache"}  # else an earlier run would have made the choice
            results[label] = run([sys.executable, __file__, *call], **cache)
        for label, peer in PEERS.items() if options.peers else ():
            out = outs[label] = Path(scratch) / peer
            python = options.venvs / f".venv-{peer.replace('_', '-')}" / "bin" / "python"
            results[label] = run([str(python), str(HERE / "peers" / f"{peer}.py"), str(folder), str(out)])
        found = errors(folder, outs) if options.size == "small" else {}
    base = results[HEADLINE]["seconds"]
    products = results[HEADLINE].get("products", options.dtype)
    where = "GPU" if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.dtype}, {where}, {width} / {mlp} x {blocks}, {WINDOWS} x {LENGTH} tokens")
    rates = gemm_rates(options.device)
    print(f"{machine(options.device)}: " + ", ".join(f"{name} products {r:.0f} GFLOP/s" for name, r in rates.items()))
    print(f"{'':28} {'seconds':>8} {'ratio':>6} {'peak MB':>8} {'loss':>8} {'output':>7}")
    for label, row in results.items():
        loss, output = found.get(label, (float("nan"),) * 2)
        print(
            f"{label:28} {row['seconds']:8.1f} {row['seconds'] / base:6.2f} {row['peak_mb']:8.0f} "
            f"{loss:8.4g} {output:7.4f}"
        )
    tokens, matrices = WINDOWS * LENGTH, 4 * width * width + 3 * width * mlp
    attention = 2 * LENGTH * width  # causal: half of all pairs
    rate = max(r for name, r in rates.items() if name.startswith(products)) * 1e9
    forward = tokens * (blocks * (2 * matrices + attention) - 2 * width * mlp) / rate
    hessians = blocks * tokens * (3 * width * width + mlp * mlp) / rate  # symmetric: half
    floor = forward + hessians
    print(
        f"floor in {products}: {forward:.1f} s forward + {hessians:.1f} s Hessians = {floor:.1f} s; "
        f"ours takes {base / floor:.2f} times that"
    )


if __name__ == "__main__":
    main()
