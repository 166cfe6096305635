"""llm-compressor's GPTQ W4A16 (groups of 128) on a model folder; runs in .venv-llm-compressor."""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main(folder: Path, out: Path) -> None:
    ids = load_file(folder / "tokens.st")["ids"].tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], actorder=None)
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        batch_size=16,
        shuffle_calibration_samples=False,
    )
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to(torch.float32).contiguous() for name, t in model.state_dict().items()}
    save_file({name: t.clone() for name, t in tensors.items() if name.endswith(".weight")}, out / "dense.safetensors")
    print("RESULT " + json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
