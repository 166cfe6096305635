"""One training step: shared prefix (ours) against plain concatenation, same model, tokens and loss, in one run.

    python benchmarks/learn.py

Prints milliseconds (median of interleaved rounds) and the ratio, for k = 100 and two text lengths.
"""

import statistics
import time

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ctplab.models import embed
from ctplab.prompts.kv import compile_rows, logits_after

ROUNDS, K = 7, 100


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    E = torch.randn(K, 256).requires_grad_(True)

    def shared(ids: torch.Tensor) -> torch.Tensor:
        return logits_after(model, compile_rows(model, E), ids)

    def concatenated(ids: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([E.expand(len(ids), -1, -1), embed(model, ids)], 1)
        return model(inputs_embeds=joined, use_cache=False).logits[:, K:]

    for batch, length in ((16, 128), (2, 1024)):
        ids = torch.randint(8192, (batch, length))
        times: dict[str, list[float]] = {"shared": [], "concatenated": []}
        for _ in range(ROUNDS):
            for name, forward in (("shared", shared), ("concatenated", concatenated)):
                began = time.perf_counter()
                F.cross_entropy(forward(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
                times[name].append(1000 * (time.perf_counter() - began))
        a, b = (statistics.median(times[name][1:]) for name in ("shared", "concatenated"))
        print(f"k {K}, batch {batch}, length {length}: shared {a:.0f} ms, concatenated {b:.0f} ms, ratio {b / a:.2f}x")


if __name__ == "__main__":
    main()
