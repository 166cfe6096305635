"""The cost of serving a prompt of k = 100: time to first token and decode rate, as ratios in one run.

    python benchmarks/serve.py [--peft]

none           no prompt: the baseline of the ratios
compiled       ours: the prompt's keys and values computed once, before the clock starts
concatenated   embeddings of prompt and text joined for every request, transformers' generate
peft           PEFT prompt tuning through its own generate (with --peft; needs the extra 'baselines')

The model is a random LLaMA of width 512 with 8 blocks and grouped queries. Texts have 128 tokens. Rounds are
interleaved. Numbers are medians with quartiles in brackets: seconds, tokens per second, and ratios to ``none``.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ctplab.formats import peft
from ctplab.models.anatomy import embed
from ctplab.progress import bar
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand

K, LENGTH, NEW, ROUNDS = 100, 128, 24, 5


def requests(model: Any, arm: Arm, ids: torch.Tensor, with_peft: bool) -> dict[str, Callable[[int], Any]]:
    """The ways to answer a batch ``ids`` (B, n), each a function of the number of new tokens."""
    kv, batch, mask = compiled(arm), len(ids), torch.ones_like(ids)
    wide = torch.ones(batch, K + ids.shape[1], dtype=torch.long)
    rows = arm.prefix.rows.expand(batch, -1, -1)

    def concatenated(new: int) -> Any:
        joined = torch.cat([rows, embed(model, ids)], 1)
        return generate(model, new, inputs_embeds=joined, attention_mask=wide)

    ways: dict[str, Callable[[int], Any]] = {
        "none": lambda new: generate(model, new, input_ids=ids, attention_mask=mask),
        "compiled": lambda new: generate(
            model, new, input_ids=ids, attention_mask=wide, past_key_values=expand(model, kv, batch)
        ),
        "concatenated": concatenated,
    }
    if with_peft:
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as folder:
            peft.write(arm.prefix, Path(folder), model, None)
            wrapped = PeftModel.from_pretrained(model, folder)
        ways["peft"] = lambda new: generate(wrapped, new, input_ids=ids, attention_mask=mask)
    return ways


def generate(model: Any, new: int, **inputs: Any) -> Any:
    return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def with_quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:8.3f} [{low:.3f}, {high:.3f}]"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at least 2: quartiles need two numbers")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    arm = Arm("soft", model, prefix.random_rows(model, K))
    print(
        f"k {K}, texts of {LENGTH} tokens, {NEW} new ones, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for batch in (1, 8):
        ways = requests(model, arm, torch.randint(10, 8192, (batch, LENGTH)), options.peft)
        first: dict[str, list[float]] = {name: [] for name in ways}
        rate: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in bar(range(options.rounds + 1), total=options.rounds + 1, label=f"batch {batch}"):
            for name, answer in ways.items():
                one, all_ = seconds(lambda answer=answer: answer(1)), seconds(lambda answer=answer: answer(NEW))
                if round_ > 0:  # the first round warms up
                    first[name].append(one)
                    rate[name].append(batch * (NEW - 1) / (all_ - one))
        for name in ways:
            # ratios within a round: a slow machine slows both
            slower = [a / b for a, b in zip(first[name], first["none"], strict=True)]
            faster = [a / b for a, b in zip(rate[name], rate["none"], strict=True)]
            print(
                f"batch {batch}  {name:12}  first token {with_quartiles(first[name])} s, x{with_quartiles(slower)}"
                f"   decode {statistics.median(rate[name]):8.1f} tokens/s, x{with_quartiles(faster)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
