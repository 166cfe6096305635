"""Whether Triton's kernels run on a device: NVIDIA and AMD cards, if Triton is there and can compile."""

import warnings
from functools import cache
from importlib.util import find_spec

import torch

FIRST = (8, 0)
"""The compute capability of the first NVIDIA cards that Triton supports in full (Ampere)."""


def usable(device: torch.device) -> bool:
    """Whether to run Triton's kernels on ``device``. The first call for a card compiles and runs a small kernel."""
    return device.type == "cuda" and _works(device)


@cache
def _works(device: torch.device) -> bool:
    """Try one kernel. Triton needs a C compiler at run time, which a machine may lack."""
    if find_spec("triton") is None:
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FIRST:
        return False
    try:
        from ctplab.compression.kernels.unpacking import dense, matrix

        codes = torch.tensor([0b00011011] * 2, dtype=torch.uint8, device=device)
        one = torch.ones(1, 1, device=device)
        found = matrix({"codes": codes, "scale": one, "zero": one.byte()}, 2, (1, 8))
        twice = range(2)  # the second time without Triton's look-up
        return found is not None and all(
            dense(found, torch.float32).tolist() == [[2.0, 1.0, 0.0, -1.0] * 2] for _ in twice
        )
    except Exception as error:  # whatever a compiler, a driver or Triton raises: everything works without it
        warnings.warn(f"no Triton kernels on {device} ({type(error).__name__}): slower", stacklevel=4)
        return False
