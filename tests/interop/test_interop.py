"""The peers' answers (``make interop``) against ours. Skipped if no peer has answered."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("CTPLAB_INTEROP", Path(__file__).parents[2] / "build" / "interop"))
#: A weight within fp32 noise of the middle between two codes may round either way, and then moves those after it:
#: 9 of 92 auto-gptq cases do so (most at 8 bits, where steps are finest), in at most 0.15% of their codes.
SAME_CODES = 0.998
#: Readers compute in bfloat16 or half precision: 2^-9 relative a product, through the blocks; root mean square.
READER_NOISE = 0.02


def answers(peer):
    if not (FOLDER / f"{peer}.safetensors").exists():
        pytest.skip(f"{peer} was not asked: 'make interop' makes its environment and asks it")
    return load_file(FOLDER / f"{peer}.safetensors"), load_file(FOLDER / "cases.safetensors")


def step_of(cases, case):
    """The largest grid step of each row, (rows, 1): codes differ where weights differ by about as much."""
    return cases[f"{case}/scale"].amax(1, keepdim=True)


def test_auto_gptq_finds_the_same_codes():
    theirs, cases = answers("auto_gptq")
    solved = [name for name in theirs if not name.startswith("logits/")]
    assert len(solved) >= 60
    for case in solved:
        off = (theirs[case] - cases[f"{case}/W_hat"]).abs() > 0.01 * step_of(cases, case)
        assert 1 - off.float().mean() >= SAME_CODES, f"{case}: {off.sum()} of {off.numel()} differ"


def test_llm_compressor_finds_the_same_codes_and_masks():
    theirs, cases = answers("llm_compressor")
    assert sum("/s" in name or "/24" in name or "/48" in name for name in theirs) >= 15
    for case, found in theirs.items():
        ours = cases[f"{case}/W_hat"]
        if f"{case}/scale" in cases:
            off = (found - ours).abs() > 0.01 * step_of(cases, case)
        else:
            assert ((found == 0) == (ours == 0)).float().mean() >= SAME_CODES, f"{case}: masks differ"
            off = (found - ours).abs() > 1e-3 * ours.abs().max()
        assert 1 - off.float().mean() >= SAME_CODES, f"{case}: {off.sum()} of {off.numel()} differ"


@pytest.mark.parametrize(
    "peer, reader", [("auto_gptq", "logits"), ("gptqmodel", "gptqmodel"), ("gptqmodel", "transformers")]
)
def test_readers_get_our_logits(peer, reader):
    theirs, _ = answers(peer)
    read = {name.split("/")[1]: logits for name, logits in theirs.items() if name.startswith(f"{reader}/")}
    assert read, f"{reader} read none of our checkpoints"
    for name, logits in read.items():
        ours = load_file(FOLDER / "exported" / name / "expected.st")["logits"]
        noise = (logits - ours).square().mean().sqrt() / ours.std()
        assert noise < READER_NOISE, f"{name}: {noise:.3f}"
