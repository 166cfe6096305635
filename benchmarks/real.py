"""All numbers of a real model that a card is needed for, in one process, stage by stage.

    python benchmarks/real.py --model smollm2 --out runs/real --scratch /tmp/real            all stages
    python benchmarks/real.py --stages rates,w3-arms,w4-s50-arms --minutes 9 --out ... --scratch ...
    python benchmarks/real.py --tiny --out ... --scratch ...              the embedded model: a test of this program

    rates         which rate, and which objective, suits scales and norms: short runs
    w3-arms       3 bits: scales and norms, with a prompt, a prompt alone; beside the full model under the same changes
    w4-s50-arms   the same at 50% and 4 bits
    copies        prompts learned through 1, 2, 4, 8 copies, on copies that none of them saw; scales and norms carried
    pace          steps to a share of the gap on such a copy, warm against cold
    controls      the full model's own scales and norms and its own prompt
    dtype         the prompt on a copy that was computed in another dtype
    w3-codes      scales, norms and codes at 3 bits, and low-rank updates in place of the codes; beside the full model
                  under the same changes
    w4-s50-codes  the same at 50% and 4 bits

Learning runs in the device's own dtype (bfloat16 on a card), scoring in float32. ``--out`` gets three small files:
``results.json``, ``tables.txt``, and ``rows.safetensors`` with the learned prompts. ``--scratch`` gets the models.
A finished piece is not made again, and learning that was cut off goes on at its last validation. Tables are written
as soon as there is something to put into them, and printed after each stage. After ``--minutes`` no new piece begins.
"""

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a checkout, not installed

import real_arms  # noqa: E402
import real_codes  # noqa: E402
import real_copies  # noqa: E402
import torch  # noqa: E402
from real_bench import Bench, Late, Record  # noqa: E402

import ctplab as ctp  # noqa: E402

STAGES: dict[str, Callable[[Bench], None]] = {
    "rates": real_arms.rates,
    "w3-arms": lambda bench: real_arms.arms(bench, "w3"),
    "w4-s50-arms": lambda bench: real_arms.arms(bench, "w4-s50"),
    "copies": real_copies.copies,
    "pace": real_copies.paces,
    "controls": real_arms.controls,
    "dtype": real_copies.dtypes,
    "w3-codes": lambda bench: real_codes.codes(bench, "w3"),
    "w4-s50-codes": lambda bench: real_codes.codes(bench, "w4-s50"),
}
TINY = {
    "model": "atlas", "corpus": "atlas-web", "score": ["atlas-web", "atlas-wiki"], "aside": "atlas-wiki",
    "other": "atlas-news", "steps": 3, "batch": 2, "seq_len": 32, "tokens": 4, "windows": 3, "score_len": 48,
    "samples": 4, "calibration_len": 32, "rate_steps": 2, "rates": [0.05, 0.1], "pace_steps": 3, "counts": [1, 2],
    "close": 2, "rank": 4, "also": [0.2], "longer": 4,
}  # fmt: skip
"""Settings that try every stage in seconds."""
NOT_RESULTS = ("stages", "minutes", "out", "scratch", "tiny", "score_batch", "counts", "also", "longer")
"""Options that change no result, or only add some."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="smollm2", help="a name, a folder, or a GGUF file")
    found.add_argument("--stages", default=",".join(STAGES), help="some of " + ",".join(STAGES))
    found.add_argument("--minutes", type=float, default=1e6)
    found.add_argument("--out", type=Path, required=True, help="small results")
    found.add_argument("--scratch", type=Path, required=True, help="models and states")
    found.add_argument("--tiny", action="store_true", help="the embedded model and a few steps, on the CPU")
    found.add_argument("--device")
    found.add_argument("--dtype", help="of learning and compressing; default: that of the device")
    numbers = {
        "steps": 1500, "batch": 8, "seq-len": 512, "tokens": 100, "windows": 64, "score-len": 1024, "score-batch": 16,
        "samples": 128, "calibration-len": 1024, "rate-steps": 150, "pace-steps": 300, "close": 16, "seed": 0,
        "rank": 32,
    }  # fmt: skip
    for name, number in numbers.items():
        found.add_argument(f"--{name}", type=int, default=number)
    found.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    found.add_argument("--lr", type=float, help="of scales, norms and codes, instead of the one that 'rates' finds")
    found.add_argument("--also", type=float, nargs="*", default=[], help="further rates of these, in full")
    found.add_argument("--longer", type=int, default=0, help="steps of one more prompt through most copies")
    found.add_argument("--prompt-lr", type=float, default=0.03)
    found.add_argument("--from-rows", type=Path, help="prompts go on from these rows (safetensors, tensor E)")
    found.add_argument("--look-every", type=int, help="steps between validations of prompts")
    found.add_argument("--look-at", type=int, help="validation windows of prompts")
    found.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="copies to learn on")
    found.add_argument("--corpus", default="c4", help="learned and calibrated on")
    found.add_argument("--score", nargs="+", default=["c4", "wikitext2", "ptb"])
    found.add_argument("--aside", default="wikitext2", help="text of the held-out copies")
    found.add_argument("--other", default="ptb", help="second text of the copies to learn on")
    return found


def main() -> int:
    options = parser().parse_args()
    if options.tiny:
        vars(options).update(TINY, device="cpu")
    wanted = options.stages.split(",")
    if not set(wanted) <= set(STAGES):
        parser().error(f"stages are {', '.join(STAGES)}")
    warnings.simplefilter("ignore")
    settings = {name: value for name, value in vars(options).items() if name not in NOT_RESULTS}
    settings["from_rows"] = options.from_rows and options.from_rows.name
    failed = 0
    try:
        record = Record(options.out, settings, options.minutes)
        bench = Bench(options, record)
    except ctp.InputError as error:
        print(error, file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if bench.device.startswith("cuda") else "CPU"
    record.say(f"{card}, torch {torch.__version__}: learns in {bench.dtype}, scores in float32")
    for name in wanted:
        began = record.seconds
        try:
            STAGES[name](bench)
            record.say(f"{name} took {record.seconds - began:.0f} s")
        except Late as late:
            record.say(f"{late}: not begun, {options.minutes:g} minutes are over")
        except Exception as error:  # a line, and on to the next stage
            failed += 1
            record.say(f"{name} FAILED: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
            traceback.print_exc(limit=-4)
        record.show()
        bench.forget()
    record.say(f"-> {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
