"""GPTQModel's 4-bit GPTQ (groups of 128) on a model folder; runs in .venv-gptqmodel."""

import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.pop(0)  # this file has the package's name
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file


def main(folder: Path, out: Path) -> None:
    ids = load_file(folder / "tokens.st")["ids"].tolist()
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    began = time.perf_counter()
    config = QuantizeConfig(bits=4, group_size=128, sym=True, desc_act=False, act_group_aware=False, device="cpu")
    model = GPTQModel.load(str(folder), config)
    model.quantize(data, batch_size=16)
    model.save(str(out))
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
