"""GPTQ, SparseGPT and joint compression of a 4-block LLaMA (768 / 2048) against llm-compressor and GPTQModel.

    python benchmarks/compress.py [--dtype bfloat16] [--peers]

Each contender runs in a process of its own on the same model folder and tokens (64 x 512); ``--peers`` needs the
environments of ``make bench``. Time is load + compress + save; memory is the process's peak; loss is the squared
output error a token, summed over layers, on the full model's inputs. The floor is the matrix products that cannot
be avoided, at this machine's own measured rate: Hessians, a pass to every block's last input, and one through every
block but the last.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
WINDOWS, LENGTH, WIDTH, MLP, BLOCKS = 64, 512, 768, 2048, 4
OURS = {
    "ctplab w4-g128-sym-ts": {"bits": 4, "group_size": 128, "symmetric": True, "true_sequential": True},
    "ctplab w4-g128-sym": {"bits": 4, "group_size": 128, "symmetric": True},
    "ctplab s50": {"sparsity": 0.5},
    "ctplab w4-s50": {"bits": 4, "sparsity": 0.5},
}
PEERS = {"llm-compressor w4-g128-sym": "llm_compressor", "GPTQModel w4-g128-sym": "gptqmodel"}


def make(folder: Path, dtype: torch.dtype) -> None:
    """The model (random weights; time does not care), a tokenizer, and the calibration tokens."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    from ctplab.atlas.facts import data_dir

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=BLOCKS,
        num_attention_heads=12,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_dir() / "model" / name, folder)
    save_file({"ids": torch.randint(3, 2048, (WINDOWS, LENGTH))}, folder / "tokens.st")


def ours(folder: Path, out: Path, settings: dict) -> None:
    """One contender: runs in a fresh process and prints its JSON line."""
    import ctplab as ctp
    from ctplab.progress import silent

    ids = load_file(folder / "tokens.st")["ids"]
    dtype = json.loads((folder / "config.json").read_text())["dtype"]
    tokenizer = ctp.load_tokenizer(folder)
    began = time.perf_counter()
    spec = ctp.CompressionSpec(**settings)
    ctp.compress_to(out, folder, tokenizer, ids, spec, dtype=dtype, device="cpu", progress=silent)
    report(began)


def report(began: float) -> None:
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(done.stdout[-1500:], done.stderr[-1500:], file=sys.stderr)
        return {"seconds": float("nan"), "peak_mb": float("nan")}
    return json.loads(lines[-1].removeprefix("RESULT "))


@torch.no_grad()
def losses(folder: Path, outs: dict[str, Path]) -> dict[str, float]:
    """Squared output error a token of every contender, on the inputs of the full model."""
    import ctplab as ctp
    from ctplab.models import blocks, linears

    full, _ = ctp.load(folder, device="cpu", dtype="float32")
    ids = load_file(folder / "tokens.st")["ids"][:16]
    hessians: dict[str, torch.Tensor] = {}
    layers = {f"{name}.{unit}": layer for name, block in blocks(full) for unit, layer in linears(block).items()}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: hessians.update({name: args[0].flatten(0, 1).T @ args[0].flatten(0, 1)})
        )
    full(ids)
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
            difference = layer.weight - weights[f"{name}.weight"].float()
            total += float(((difference @ hessians[name]) * difference).sum()) / ids.numel()
        found[label] = total
    return found


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here."""
    a, b = torch.randn(4096, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    a @ b
    began = time.perf_counter()
    for _ in range(5):
        a @ b
    return 5 * 2 * 4096 * 2048 * 2048 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--venvs", type=Path, default=HERE.parent, help="where .venv-llm-compressor and others are")
    parser.add_argument("--contender", nargs=3, metavar=("MODEL", "OUT", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        ours(Path(options.contender[0]), Path(options.contender[1]), json.loads(options.contender[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make(folder, getattr(torch, options.dtype))
        results, outs = {}, {}
        for label, settings in OURS.items():
            out = outs[label] = Path(scratch) / label.replace(" ", "-")
            call = [sys.executable, __file__, "--contender", str(folder), str(out), json.dumps(settings)]
            results[label] = run(call)
        for label, peer in PEERS.items() if options.peers else ():
            out = outs[label] = Path(scratch) / peer
            python = options.venvs / f".venv-{peer.replace('_', '-')}" / "bin" / "python"
            results[label] = run([str(python), str(HERE / "peers" / f"{peer}.py"), str(folder), str(out)])
        errors = losses(folder, outs)
    base = results["ctplab w4-g128-sym"]["seconds"]
    print(f"{options.dtype}, {torch.get_num_threads()} threads, {WINDOWS} x {LENGTH} tokens")
    print(f"{'':28} {'seconds':>8} {'ratio':>6} {'peak MB':>8} {'loss':>10}")
    for label, row in results.items():
        print(
            f"{label:28} {row['seconds']:8.1f} {row['seconds'] / base:6.2f} {row['peak_mb']:8.0f} "
            f"{errors.get(label, float('nan')):10.4g}"
        )
    tokens, matrices = WINDOWS * LENGTH, 4 * WIDTH * WIDTH + 3 * WIDTH * MLP
    attention = 2 * LENGTH * WIDTH  # causal: half of all pairs
    to_last_input, through = 2 * (matrices - WIDTH * MLP) + attention, 2 * matrices + attention
    rate = gemm_rate(getattr(torch, options.dtype))
    forwards = tokens * (BLOCKS * to_last_input + (BLOCKS - 1) * through) / rate
    hessians = BLOCKS * tokens * (3 * WIDTH * WIDTH + MLP * MLP) / rate  # symmetric: half
    floor = forwards + hessians
    print(
        f"floor: {forwards:.1f} s forwards + {hessians:.1f} s Hessians = {floor:.1f} s; "
        f"ours takes {base / floor:.2f} times that"
    )


if __name__ == "__main__":
    main()
