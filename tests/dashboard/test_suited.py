"""What the forms begin with, and what they say beforehand, hold for the model."""

import re

import ctplab as ctp
from ctplab.app.beforehand import expected, stored_bits
from ctplab.app.bench import Chosen
from ctplab.app.suited import suited
from ctplab.progress import silent


def test_the_embedded_model_learns_from_its_own_world(real):
    assert suited(real.bench, "atlas").corpus == "atlas-web"


def test_sizes_beforehand_are_those_on_disk(real, tmp_path):
    tokenizer = real.bench.model("atlas").tokenizer
    windows = ctp.corpus("atlas-web", tokenizer, 32).train.sample(4, 0)
    for spec in (ctp.CompressionSpec(bits=3), ctp.CompressionSpec(bits=4, sparsity=0.5, group_size=32)):
        made = ctp.compress_to("atlas", tmp_path / spec.tag, tokenizer, windows, spec, progress=silent)
        told = expected(real.bench, "atlas", spec, "atlas-web", 4, 32)
        size, bits = (
            float(re.search(pattern, told)[1]) for pattern in (r"\*\*([\d.]+) MB", r"compress, ([\d.]+) bits")
        )
        assert abs(size * 1e6 / made["bytes"] - 1) < 0.03  # files have headers
        assert abs(bits / made["bits_per_weight"] - 1) < 0.02  # and codes are padded to whole words
    assert stored_bits(ctp.CompressionSpec(sparsity=0.5), 256) == 9.0  # half of 16 bits, and a mask


def test_a_full_model_brings_what_was_made_from_it(real):
    bench, first = real.bench, real.bench.chosen()
    assert bench.companions("atlas") == first
    assert bench.prompt_for(Chosen("atlas", first.compressed, "")) == first.prompt
    assert bench.companions(first.compressed) == Chosen(first.compressed, first.compressed, first.prompt)
