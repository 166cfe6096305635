"""Calibration must see what the model sees: tried before anything is solved, and refused if it does not."""

import pytest
import torch
from architectures import VOCABULARY, tiny_model
from conftest import any_tiny

import ctplab as ctp
from ctplab.compression.rehearsal import flow_agrees, shares_weights
from ctplab.models.anatomy import blocks, eager_experts

WINDOWS = torch.randint(3, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "GPTNeoConfig", "MixtralConfig", "Gemma3TextConfig"])
def test_plain_decoders_agree(family):
    model = any_tiny(family)
    modules = [block for _, block in blocks(model)]
    with eager_experts(model):
        assert flow_agrees(model, modules, WINDOWS, lambda *_: None, lambda *_: None)
    assert not shares_weights(modules)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("zamba2", "share weights"), ("gemma3n_text", "hands its blocks more than hidden states and positions")],
)
def test_models_whose_blocks_get_more_are_refused(kind, reason, quiet):
    with pytest.raises(ctp.InputError, match=reason):
        ctp.compress(tiny_model(kind), WINDOWS, ctp.CompressionSpec(bits=8), **quiet)


def test_matrices_that_stay_as_they_are_count_and_are_named(quiet):
    """Experts multiplied as one stack are not watched: the headline says what that means for the whole."""
    model = tiny_model("llama4_text")
    _, report = ctp.compress(model, WINDOWS, ctp.CompressionSpec(bits=4), **quiet)
    left = sum(report.left.values())
    total = left + sum(layer.weights for layer in report.layers)
    inside = sum(p.numel() for _, block in blocks(model) for p in block.parameters() if p.ndim > 1)
    assert total == inside and left / total > 0.02
    assert any("of the blocks' weights were not compressed" in line for line in report.warnings)
    assert report.bits_per_weight < report.block_bits_per_weight < 16
