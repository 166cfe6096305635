"""llama.cpp's answers for GGUF files (``make interop``) against those of the folders that we make of them."""

import json

import numpy as np
import pytest
from test_interop import FOLDER

#: Single precision, up to 30 blocks deep: 1e-6 relative an operation.
SAME_LOGITS = 1e-4
#: llama.cpp looks Gemma's GELU up in a table of half precision: 2^-11 relative.
GELU_TABLE = 1e-2
#: What was agreed for real weights.
TOP, KL = 0.99, 0.01


@pytest.fixture(scope="module")
def answers():
    if not (FOLDER / "gguf" / "llama_cpp.npz").exists():
        pytest.skip("llama.cpp was not asked: 'make interop' makes its environment and asks it")
    ours, theirs = (dict(np.load(FOLDER / "gguf" / f"{who}.npz")) for who in ("ours", "llama_cpp"))
    return ours, theirs


def log_probabilities(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_tiny_models_have_the_same_logits(answers):
    ours, theirs = answers
    tiny = [name for name in ours if name != "smollm2"]
    assert len(tiny) >= 14
    for name in tiny:
        off = np.abs(ours[name] - theirs[name]).max() / ours[name].std()
        assert off < (GELU_TABLE if "gemma" in name else SAME_LOGITS), f"{name}: {off:.1e}"


def compared(p_logits, q_logits):
    """(share of the same top tokens, mean KL in nats)."""
    p, q = log_probabilities(p_logits), log_probabilities(q_logits)
    assert len(p) == 200
    return (p.argmax(-1) == q.argmax(-1)).mean(), (np.exp(p) * (p - q)).sum(-1).mean()


def test_smollm2_says_the_same(answers):
    """Its file as it is: llama.cpp rounds inputs to 8 bits before it multiplies 4-bit weights, which turns a few top
    tokens. The same weights in float32: nothing is left but the order of sums.
    """
    ours, theirs = answers
    if "smollm2" not in ours:
        pytest.skip("SmolLM2 is not here: 'ctplab get smollm2' fetches it (93 MB)")
    top, kl = compared(theirs["smollm2"], ours["smollm2"])
    print(f"SmolLM2 as llama.cpp runs it: same top token {top:.1%}, mean KL {kl:.4f}")
    assert kl < KL
    top, kl = compared(theirs["smollm2-widened"], ours["smollm2"])
    print(f"SmolLM2's weights in float32 under llama.cpp: same top token {top:.1%}, mean KL {kl:.1e}")
    assert top >= TOP and kl < KL
    assert np.abs(ours["smollm2"] - theirs["smollm2-widened"]).max() / ours["smollm2"].std() < SAME_LOGITS


def test_the_same_ids_on_a_page_of_mixed_text(answers):
    asked = json.loads((FOLDER / "gguf" / "asked.json").read_text())
    theirs = json.loads((FOLDER / "gguf" / "llama_cpp.json").read_text())
    for name, case in asked["cases"].items():
        for text, mine, yours in zip(asked["texts"], case["texts"], theirs[name], strict=True):
            assert mine == yours, f"{name}: {text[:40]!r}"
