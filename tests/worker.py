"""One of several processes, for test_parallel.py: runs the commands in argv[1] (JSON) in one group.

With ``DIES_AT`` set, the second process ends as if killed at that sum over processes.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from ctplab import cli, parallel

real = parallel.add_up
sums = 0


def deadly(tensors: list[torch.Tensor]) -> None:
    global sums
    sums += 1
    if sums == int(os.environ.get("DIES_AT", "0")) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors)


def experts(out: str) -> None:
    """A mixture of experts, compressed in memory."""
    import transformers
    from conftest import MORE_FAMILIES, from_config
    from safetensors.torch import save_file

    import ctplab as ctp
    from ctplab.progress import silent

    model = from_config(transformers.Qwen2MoeConfig(**MORE_FAMILIES["Qwen2MoeConfig"]))
    windows = torch.arange(6 * 16).view(6, 16) * 37 % 2048
    spec = ctp.CompressionSpec(bits=3, sparsity=0.5)
    small, report = ctp.compress(model, windows, spec, batch=2, progress=silent)
    Path(out).mkdir(exist_ok=True)
    number = os.environ.get("RANK", "one")
    save_file({n: p.clone() for n, p in small.named_parameters()}, f"{out}/{number}.safetensors")
    Path(f"{out}/{number}.json").write_text(json.dumps([[x.name, x.loss, x.fallback] for x in report.layers]))


if __name__ == "__main__":
    parallel.add_up = deadly
    commands = json.loads(sys.argv[1])
    if "DIES_AT" in os.environ:
        sys.exit(cli.main(commands[0]))
    with parallel.group() as device:
        for arguments in commands:
            if arguments[0] == "experts":
                experts(arguments[1])
            else:
                assert cli.run_command(arguments, device) == 0
