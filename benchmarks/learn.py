"""Learning a prompt: our step against PEFT prompt tuning and against its bound, and our recipe against the paper's.

    python benchmarks/learn.py            all sections
    python benchmarks/learn.py step       milliseconds per step: ours, PEFT's, plain concatenation (interleaved rounds)
    python benchmarks/learn.py memory     peak memory of a step, each method in its own process
    python benchmarks/learn.py arms       steps of everything that can be learned, beside a prompt's
    python benchmarks/learn.py recipes    validation NLL on the embedded model after the same wall time

All methods share model, tokens, loss and gradient. Milliseconds depend on the machine: read the ratios.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import ctplab as ctp
from ctplab.compression import onednn
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir
from ctplab.learning.fused import Fused
from ctplab.learning.keys_values import KeysValues, as_keys_and_values
from ctplab.learning.objective import mixed_loss
from ctplab.learning.rows import Rows, learn_steps, start
from ctplab.learning.step import Gradient, Learnable
from ctplab.learning.tuned import Tuned
from ctplab.learning.windows import Windows
from ctplab.models import Model
from ctplab.models.anatomy import embed
from ctplab.progress import silent
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import halves
from ctplab.prompts.prefix import random_rows

K, WIDTH, LAYERS, VOCABULARY = 100, 256, 4, 16_384
INNER = 688
SHAPES = ((16, 128), (2, 1024))
METHODS = ("ours", "peft", "concatenation")


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval().requires_grad_(False)


def make_step(method: str, model: LlamaForCausalLM) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return (a function from ids to the loss, which leaves the gradient on E; E)."""
    rows = torch.randn(K, WIDTH, generator=torch.Generator().manual_seed(1)) * 0.02
    E = rows.clone().requires_grad_(True)
    if method == "ours":
        cut, fused = halves(model), Fused.of(model)

        def ours(ids: Tensor) -> Tensor:
            with fused.on() if fused else nullcontext():
                states = cut.states(compile_rows(model, E), ids)[:, :-1].flatten(0, 1)
                loss = mixed_loss(states, cut.head, VOCABULARY, ids[:, 1:].flatten()) / ids[:, 1:].numel()
                loss.backward()
            return loss

        return ours, E
    if method == "concatenation":

        def concatenated(ids: Tensor) -> Tensor:
            joined = torch.cat([E.expand(len(ids), -1, -1), embed(model, ids)], 1)
            logits = model(inputs_embeds=joined, use_cache=False).logits[:, K:-1]
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            return loss

        return concatenated, E
    from peft import PromptTuningConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=K))
    E = peft.prompt_encoder["default"].embedding.weight
    E.data.copy_(rows)

    def tuned(ids: Tensor) -> Tensor:
        labels = ids.clone()
        labels[:, 0] = -100  # the first token is never a target
        loss = peft(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss
        loss.backward()
        return loss

    return tuned, E


def gemm_rate() -> float:
    """FLOP/s (2 per multiply-add) of a product of the shape in the model's MLP, by what is faster: BLAS or oneDNN."""
    a, b = torch.randn(2048, WIDTH), torch.randn(INNER, WIDTH)
    found = []
    for multiply in (F.linear, *([onednn.linear] if onednn.available() else [])):
        times = []
        for _ in range(12):
            began = time.perf_counter()
            multiply(a, b)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times[2:]))
    return 2 * 2048 * WIDTH * INNER / min(found)


def step_flops(model: LlamaForCausalLM, batch: int, length: int) -> float:
    """FLOPs of products with weights (forward and backward, twice a forward in all), and of causal attention."""
    inside = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.ndim == 2)
    head = VOCABULARY * WIDTH
    weights = 2 * 2 * (inside * (batch * length + K) + head * batch * length)
    pairs = batch * (length * K + length**2 / 2)
    return weights + 3.5 * 2 * 2 * pairs * WIDTH * LAYERS  # its backward is 2.5 forwards: it recomputes the scores


def step(rounds: int) -> None:
    model = make_model()
    steps = {name: make_step(name, model) for name in METHODS}
    for batch, length in SHAPES:
        ids = torch.randint(VOCABULARY, (batch, length))
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        gradients, losses = {}, {}
        for _ in range(rounds + 1):
            for name, (run, E) in steps.items():
                E.grad = None
                began = time.perf_counter()
                losses[name] = run(ids).item()
                times[name].append(1000 * (time.perf_counter() - began))
                assert E.grad is not None
                gradients[name] = E.grad.clone()
        for name in METHODS[1:]:  # the same numbers up to fp32 summation order
            assert abs(losses[name] / losses["ours"] - 1) < 1e-5
            assert (gradients[name] - gradients["ours"]).norm() < 1e-2 * gradients["ours"].norm()
        middle = {name: statistics.median(values[1:]) for name, values in times.items()}
        bound = step_flops(model, batch, length) / gemm_rate() * 1000
        print(
            f"step  k {K}, batch {batch}, length {length}: "
            + ", ".join(f"{name} {ms:.0f} ms" for name, ms in middle.items())
            + f"; PEFT/ours {middle['peft'] / middle['ours']:.2f}x, "
            + f"concatenation/ours {middle['concatenation'] / middle['ours']:.2f}x; "
            + f"FLOPs at this machine's GEMM rate {bound:.0f} ms = {bound / middle['ours']:.0%} of ours"
        )


def peak(method: str, batch: int, length: int) -> None:
    """Print the MB that two steps add to this process's peak; each method has its own process."""
    run, E = make_step(method, make_model())
    run(torch.randint(VOCABULARY, (1, 8)))
    before = high_water()
    for _ in range(2):
        E.grad = None
        run(torch.randint(VOCABULARY, (batch, length)))
    print((high_water() - before) // 1024)


def high_water() -> int:
    """The most memory in KiB that this program held. On Linux ``ru_maxrss`` begins with what the parent held."""
    about = Path("/proc/self/status")
    lines = about.read_text().splitlines() if about.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def arms(rounds: int) -> None:
    """One gradient of each arm on the embedded compressed model, and how long it takes beside a prompt's."""
    folder, spec, k = data_dir() / SHOWCASE, ctp.PromptSpec(tokens=64, batch=8), 64
    learnables: dict[str, Callable[[Model], Learnable]] = {
        "soft": lambda model: Rows(start(model, spec).initial, model),
        "keys and values": lambda model: KeysValues(
            as_keys_and_values(model, random_rows(model, k), "kv"), model
        ),
        "scales": lambda model: Tuned(model, folder, ["scales"]),
        "norms": lambda model: Tuned(model, folder, ["norms"]),
        "scales+norms": lambda model: Tuned(model, folder, ["scales", "norms"]),
        "scales+norms+codes": lambda model: Tuned(model, folder, ["scales", "norms", "codes"]),
        "scales+norms+low-rank": lambda model: Tuned(model, folder, ["scales", "norms", "low-rank"]),
        "scales+norms+soft": lambda model: Tuned(
            model, folder, ["scales", "norms"], prompt=start(model, spec).initial
        ),
        "lora": lambda model: ctp.LoraAdapter(model, ctp.LoraSpec()),
    }  # fmt: skip
    gradients = {}
    for name, make in learnables.items():
        model, tokenizer = ctp.load(folder, device="cpu", dtype="float32")
        learnable = make(model)
        for p in learnable.parameters.values():
            p.grad = torch.zeros_like(p)
        train = ctp.corpus("atlas-web", tokenizer, seq_len=128).train
        text = Windows.of(train, torch.device("cpu"), 64)
        gradients[name] = Gradient.of(learnable, halves(model), text, spec, None)
    times: dict[str, list[float]] = {name: [] for name in gradients}
    for turn in range(rounds + 1):
        numbers = torch.arange(8 * turn, 8 * turn + 8) % 64
        for name, gradient in gradients.items():
            began = time.perf_counter()
            gradient(numbers, 8 * 127)
            times[name].append(1000 * (time.perf_counter() - began))
    middle = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, ms in middle.items():
        size = sum(p.numel() for p in gradients[name].learnable.parameters.values())
        print(f"arms  {name}: {size:,} numbers, {ms:.0f} ms a step of 8 x 128, {ms / middle['soft']:.2f}x a prompt's")


def memory() -> None:
    for batch, length in SHAPES:
        found = {}
        for name in METHODS:
            command = [sys.executable, __file__, "peak", "--method", name, "--shape", str(batch), str(length)]
            found[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"memory  k {K}, batch {batch}, length {length}, peak above the idle model: "
            + ", ".join(f"{name} {mb} MB" for name, mb in found.items())
            + f"; PEFT/ours {found['peft'] / max(1, found['ours']):.1f}x"
        )


def recipes(seconds: float) -> None:
    """Run both recipes on the embedded model for the same time, each with its own schedule fitted to that time."""
    full, tokenizer = ctp.load("atlas")
    web = ctp.corpus("atlas-web", tokenizer, seq_len=128)
    spec = ctp.CompressionSpec(bits=4, sparsity=0.5)
    model, _ = ctp.compress(full, web.train.sample(128), spec, progress=silent)
    held_out = web.validation.windows[:200]
    paper, ours = replace(ctp.PromptSpec.paper(), evaluate_every=None), ctp.PromptSpec()
    found = {}
    for name, recipe in (("paper", paper), ("ours", ours)):
        probe = replace(recipe, steps=20, warmup=0, evaluate_every=20, validation_windows=1)
        began = time.perf_counter()
        list(learn_steps(model, web.train, web.validation, probe))
        steps = max(20, int(0.9 * seconds / ((time.perf_counter() - began) / 20)))  # a tenth goes to validation
        timed = replace(recipe, steps=steps, warmup=min(recipe.warmup, steps // 10))
        result = start(model, timed)
        began = time.perf_counter()
        for _ in learn_steps(model, web.train, web.validation, timed, result=result):
            if time.perf_counter() - began > seconds:
                break
        score = ctp.perplexity(ctp.Arm(name, model, result.prefix), held_out)
        found[name] = score.nll / score.n_tokens
        print(f"recipes  {name}: {len(result.steps)} of {steps} steps in {time.perf_counter() - began:.0f} s, ", end="")
        print(f"held-out NLL {found[name]:.4f}")
    plain = [ctp.perplexity(arm, held_out) for arm in ctp.arms(full=full, compressed=model)]
    print("recipes  full {:.4f}, compressed {:.4f}; ".format(*(s.nll / s.n_tokens for s in plain)), end="")
    print(f"ours is lower than the paper's by {found['paper'] - found['ours']:.4f} nats a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=("step", "arms", "memory", "recipes", "peak"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60, help="of each recipe")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--shape", type=int, nargs=2)
    options = parser.parse_args()
    if options.section == "peak":
        peak(options.method, *options.shape)
        return
    if options.section in (None, "step"):
        step(options.rounds)
    if options.section in (None, "arms"):
        arms(options.rounds)
    if options.section in (None, "memory"):
        memory()
    if options.section in (None, "recipes"):
        recipes(options.seconds)


if __name__ == "__main__":
    main()
