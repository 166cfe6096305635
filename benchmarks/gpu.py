"""Everything that should be fast on a GPU, as ratios in one run on one card, in under nine minutes.

    python benchmarks/gpu.py                        all sections
    python benchmarks/gpu.py --sections learn,solver
    python benchmarks/gpu.py --tiny --device cpu    tiny shapes, anywhere: shows that every section runs

Sections: ``learn`` (a step at six shapes, beside PEFT), ``solver`` (a matrix by shape and option), ``blocks`` (8 blocks
of 7B's shape from loading to saving, beside llm-compressor if it is installed), ``packed`` (learning, first token and
decoding through packed weights, beside dense ones; decoding kernel by kernel and over a recorded step), ``whole`` (a
model of 7B's shape with 32 blocks: compressed, a prompt learned through packed weights, scored; memory beside ``ctplab
memory``). Weights are random, which does not affect time. A section that fails prints one line, and the others go on.
All that is printed is also written to ``benchmarks/results/``. Needs torch, transformers, accelerate and safetensors;
Triton and PEFT if they are there.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a checkout, not installed

import gpu_sections as sections  # noqa: E402

SECTIONS: dict[str, Callable[["sections.Setup"], None]] = {
    "learn": sections.learn,
    "solver": sections.solver,
    "blocks": sections.blocks,
    "packed": sections.packed,
    "whole": sections.whole,
}
LIMIT = 530
"""Seconds after which no further section begins."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of " + ",".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a test of this program, not of a machine")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    wanted = options.sections.split(",")
    if not set(wanted) <= set(SECTIONS):
        parser.error(f"sections are {', '.join(SECTIONS)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing to measure (--tiny --device cpu tries the program)", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    setup = sections.Setup(device, options.tiny)
    began = time.perf_counter()
    setup.say(f"{card}; {sections.versions()}; products of bfloat16 matrices: {setup.rate / 1e12:.3g} TFLOP/s")
    failed = 0
    options.results.mkdir(parents=True, exist_ok=True)
    kind = "tiny-" if options.tiny else ""
    path = options.results / f"{kind}{card.replace(' ', '-').lower()}-{date.today()}.txt"
    for name in wanted:
        if time.perf_counter() - began > LIMIT:
            setup.say(f"{name}: left out, {LIMIT} s are over")
            continue
        try:
            SECTIONS[name](setup)
        except Exception as error:  # one line, and on to the next section
            failed += 1
            reason = str(error).strip().split("\n")[0]
            setup.say(f"{name}: FAILED, {type(error).__name__}: {reason[:300]}")
        path.write_text("\n".join(setup.lines) + "\n")  # what follows may end the program
        with suppress(Exception):  # a card that has failed for good fails here as well
            setup.clean()
    setup.say(f"{time.perf_counter() - began:.0f} s in all")
    path.write_text("\n".join(setup.lines) + "\n")
    print(f"-> {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
