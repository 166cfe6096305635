"""Our scoring of a corpus against bare forward passes: same model, windows and compiled prefix, in one run.

    python benchmarks/score.py

Prints milliseconds (median of interleaved rounds) and the ratio, without and with a prompt of 100 tokens. The bare
pass computes all logits and drops them; scoring adds the loss of every target, the sums and the checks.
"""

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ctplab.measure.perplexity import window_scores
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import logits_after
from ctplab.prompts.prefix import none, random_rows

ROUNDS, WINDOWS, LENGTH, BATCH = 7, 8, 128, 4


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).eval()
    windows = torch.randint(config.vocab_size, (WINDOWS, LENGTH))
    for prefix in (none(model), random_rows(model, 100)):
        arm = Arm("arm", model, prefix)
        times: dict[str, list[float]] = {"bare": [], "score": []}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            kv = compile_prefix(model, prefix)
            for ids in windows.split(BATCH):
                logits_after(model, kv, ids)
            times["bare"].append(time.perf_counter() - began)
            began = time.perf_counter()
            window_scores(arm, windows, batch=BATCH)
            times["score"].append(time.perf_counter() - began)
        bare, score = (1000 * statistics.median(times[name][1:]) for name in ("bare", "score"))
        print(f"k {prefix.k}: bare forwards {bare:.0f} ms, scoring {score:.0f} ms, ratio {score / bare:.3f}x")


if __name__ == "__main__":
    main()
