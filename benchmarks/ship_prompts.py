"""Pack learned prompts as the ones that come with the lab: ``data/smollm2/TAG``, at most 250 KB each.

What was run for them on CPU cores. Both were ended early, after 36 and 18 steps; more steps make a better start. w3-nll
and w4-s50-nll are the prompts of the long run on a GPU (see the ``commands`` of ``data/smollm2/long-run.json``):

    ctplab compress smollm2 --bits 3 --calibration c4 --samples 48 --seq-len 256 --seed 11 --out w3
    ctplab learn w3 --recompress 2 --calibration c4,docs --init-prompt w3-nll --corpus c4 --tokens 100 \\
        --steps 70 --batch 4 --seq-len 256 --out w3-prompt
    ctplab compress smollm2 --bits 4 --sparsity 0.5 --calibration c4 --samples 48 --seq-len 256 --seed 11 --out w4-s50
    ctplab learn w4-s50 --recompress 2 --calibration docs,c4 --init-prompt w4-s50-nll --corpus c4 --tokens 100 \\
        --steps 45 --batch 4 --seq-len 256 --out w4-s50-prompt
    python benchmarks/ship_prompts.py w3-prompt w4-s50-prompt

The rows that a prompt started from are left out (they take as much room again), and the curve keeps what is drawn.
"""

import sys
from pathlib import Path

import ctplab as ctp
from ctplab.demo.shipped import folder
from ctplab.disk import write_json
from ctplab.formats import prompt_file

LARGEST = 250_000  # bytes


def pack(source: Path, out: Path) -> int:
    """Write the prompt in ``source`` to ``out``/TAG; returns its bytes."""
    saved = ctp.load_prompt(source)
    place = out / saved.info["tag"]
    curve = [
        {"step": s["step"], "loss": round(s["loss"], 4), "validation": s["validation"] and round(s["validation"], 4)}
        for s in saved.info["curve"]
    ]
    prompt_file.write(saved.prefix, None, {**saved.info, "init_prompt": "the long run on a GPU", "curve": []}, place)
    info = ctp.load_prompt(place).info
    write_json({**info, "versions": saved.info["versions"], "curve": curve}, place / prompt_file.MANIFEST)
    return sum(file.stat().st_size for file in place.iterdir())


def main() -> None:
    for source in map(Path, sys.argv[1:]):
        size = pack(source, folder())
        print(f"{source} -> {folder()}: {size:,} bytes")
        if size > LARGEST:
            raise SystemExit(f"more than {LARGEST:,} bytes")


if __name__ == "__main__":
    main()
