"""Fingerprints see every value, notice every change, and keep what prompt files hold."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import nn

import ctplab as ctp
from ctplab.models.fingerprints import (
    base_facts,
    copy_fingerprint,
    one_base,
    see,
    tensor_fingerprint,
    unchanged,
    weights_fingerprint,
)


def test_every_value_counts():
    """Long tensors too, whichever row it is in; and shape and dtype."""
    table = torch.zeros(1024, 4)
    known = {tensor_fingerprint(table), tensor_fingerprint(table.view(4, 1024)), tensor_fingerprint(table.half())}
    for row in (0, 1, 511, 1023):
        other = table.clone()
        other[row, 3] = 1
        known.add(tensor_fingerprint(other))
    assert len(known) == 7
    assert tensor_fingerprint(table.T) == tensor_fingerprint(table.T.contiguous())
    assert tensor_fingerprint(torch.tensor(3)) != tensor_fingerprint(torch.tensor(4))
    assert tensor_fingerprint(torch.zeros(0, 3)) != tensor_fingerprint(torch.zeros(0, 4))


def test_a_models_fingerprint_follows_every_change_of_its_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    seen = [weights_fingerprint(model)]
    assert weights_fingerprint(model) == seen[0]
    model[0].weight[2, 2] += 1
    seen.append(weights_fingerprint(model))
    model[1].running_mean.add_(1)  # a buffer, as packed codes are
    seen.append(weights_fingerprint(model))
    model[0].weight = nn.Parameter(model[0].weight * 2, requires_grad=False)
    seen.append(weights_fingerprint(model))
    assert len(set(seen)) == 4
    model[0].weight.mul_(0.5)
    assert weights_fingerprint(model) == seen[2]


def test_what_cannot_be_watched_is_never_called_unchanged():
    with torch.inference_mode():
        hidden = [torch.ones(2)]
    assert see(hidden) is None and not unchanged(None, hidden)
    plain = [torch.ones(2)]
    assert unchanged(see(plain), plain) and not unchanged(see(plain), [torch.ones(2)])


@pytest.mark.parametrize("family", ["llama", "bloom", "neox"])  # the last two have layers called dense
def test_a_copy_is_told_from_another_compression_whatever_it_is_loaded_as(family, tokenizer, web, quiet, tmp_path):
    """Dense or packed, in float32 or bfloat16: the same copy. Other calibration windows: another one."""
    found = []
    for seed in range(2):
        spec = ctp.CompressionSpec(bits=3)
        small, report = ctp.compress(tiny(family), web.train.sample(8, seed), spec, **quiet)
        ctp.save(small, tmp_path / str(seed), tokenizer, report, "tiny")
        ways = [{}, {"packed": True}, {"dtype": "bfloat16"}, {"dtype": "float16"}]
        loaded = [ctp.load(tmp_path / str(seed), device="cpu", **way)[0] for way in ways]
        found.append({copy_fingerprint(model) for model in (small, *loaded)})
    assert len(found[0]) == len(found[1]) == 1 and found[0] != found[1]


def test_the_embedded_models_base_is_still_recognised_by_its_shipped_prompt():
    """The rule must not change: prompt files hold its result."""
    import ctplab as ctp
    from ctplab.disk import data_dir

    (manifest,) = data_dir().glob("**/prompt.json")
    facts = base_facts(ctp.load("atlas", device="cpu")[0])
    assert facts.items() <= ctp.load_prompt(manifest.parent).info.items()
    assert one_base(facts, base_facts(ctp.load("atlas", device="cpu", dtype="bfloat16")[0]))


def test_the_shipped_prompt_names_the_copy_beside_it_and_one_that_names_none_is_told():
    from ctplab.disk import data_dir

    saved = ctp.load_prompt(data_dir() / "prompt")
    small, tokenizer = ctp.load(data_dir() / "w4-s55", device="cpu")
    assert saved.info["copies"] == [copy_fingerprint(small)]
    assert ctp.attach(saved, small, tokenizer, tag="w4-s55") == []
    (note,) = ctp.attach(replace(saved, info=saved.info | {"copies": ["0" * 16]}), small, tokenizer, tag="w4-s55")
    assert "another compression" in note
    (note,) = ctp.attach(replace(saved, info=saved.info | {"copies": []}), small, tokenizer, tag="w4-s55")
    assert "does not say through which compression" in note
