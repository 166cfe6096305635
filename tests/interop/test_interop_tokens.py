"""Servers' answers for folders with soft tokens and for GGUF files (``make interop``) against our arm's."""

import json

import numpy as np
import pytest
from test_interop import FOLDER

HOME = FOLDER / "tokens"
#: llama.cpp rounds what it multiplies half-precision weights with to half precision: 2^-11 relative, summed.
HALF_INPUTS = 5e-3


def answers(peer):
    if not (HOME / f"{peer}.json").exists():
        pytest.skip(f"{peer} was not asked: 'make interop' makes its environment and asks it")
    return json.loads((HOME / "asked.json").read_text()), json.loads((HOME / f"{peer}.json").read_text())


@pytest.mark.parametrize("peer", ["transformers", "llama_cpp", "vllm"])
def test_plain_text_gives_our_arms_ids_and_greedy_text(peer):
    asked, theirs = answers(peer)
    named = [name for name in theirs if name in asked["arms"]]
    assert "atlas" in named
    for name in named:
        assert theirs[name]["ids"] == asked["arms"][name]["ids"], name
        assert theirs[name]["answers"] == asked["arms"][name]["answers"], name


def test_in_a_padded_batch_and_at_four_bits():
    asked, theirs = answers("transformers")
    assert "atlas-gptq" in theirs and theirs["atlas-gptq"]["layer"] != "Linear" == theirs["atlas"]["layer"]
    for name in theirs:
        assert theirs[name]["batch"] == asked["arms"][name]["answers"], name


def test_vllm_keeps_the_prompt_and_never_says_it():
    asked, theirs = answers("vllm")
    for name, found in theirs.items():
        assert found["again"] == found["answers"]
        k = asked["arms"][name]["front"].count("|>")
        assert min(found["cached"]) >= k // 32 * 32  # whole blocks of 32 tokens, the least that its CPU kernels take
        soft = set(asked["arms"][name]["ids"][0][:k])
        assert sum(map(len, found["drawn"])) > 1000 and not soft & {i for row in found["drawn"] for i in row}


def test_tiny_models_have_our_ids_and_logits_in_llama_cpp():
    asked, theirs = answers("llama_cpp")
    ours, found = np.load(HOME / "ours.npz"), np.load(HOME / "llama_cpp.npz")
    for name, case in asked["tiny"].items():
        assert theirs[name]["ids"] == case["ids"], name
        off = np.abs(ours[name] - found[name]).max() / ours[name].std()
        assert off < HALF_INPUTS, f"{name}: {off:.1e}"
