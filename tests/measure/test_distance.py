"""The distance of weights: exact algebra on small matrices, and the same through packed layers."""

import math

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.measure.distance import Distance, distance
from ctplab.models.anatomy import block_matrices

EXACT = 1e-12
"""Sums of a few thousand float64 products."""


def drawn(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


SHAPES = ((5, 7), (3, 4))


def test_one_long_vector():
    """Several matrices count as one vector: numpy's norms of it say the same."""
    a, b, f = (drawn(seed, *SHAPES) for seed in range(3))
    found = distance(a, b, f)
    x, y, z = (torch.cat([m.flatten() for m in each]).numpy() for each in (a, b, f))
    norm = lambda v: math.sqrt(float(v @ v))  # noqa: E731
    assert found.apart == pytest.approx(norm(x - y) / norm(y), rel=EXACT)
    assert found.error == pytest.approx(norm(y - z) / norm(z), rel=EXACT)
    assert found.in_errors == pytest.approx(norm(x - y) / norm(y - z), rel=EXACT)
    assert found.alike == pytest.approx(float((x - z) @ (y - z)) / norm(x - z) / norm(y - z), rel=EXACT)


def test_the_three_numbers_hang_together():
    """Law of cosines: |A-B|² = |A-F|² + |B-F|² - 2 |A-F| |B-F| cos."""
    a, b, f = (drawn(seed, *SHAPES) for seed in (3, 4, 5))
    forth, back = distance(a, b, f), distance(b, a, f)
    assert forth.in_errors and back.in_errors and forth.alike is not None
    ratio = forth.in_errors / back.in_errors  # |A - F| / |B - F|
    assert forth.in_errors**2 == pytest.approx(ratio**2 + 1 - 2 * ratio * forth.alike, rel=1e-9)
    assert forth.alike == pytest.approx(back.alike, rel=EXACT)


def test_equal_weights_opposite_errors_and_the_full_model():
    (f,), (e,) = drawn(0, (6, 6)), drawn(1, (6, 6))
    same, opposite = distance([f + e], [f + e], [f]), distance([f - e], [f + e], [f])
    assert (same.apart, same.in_errors) == (0.0, 0.0) and same.alike == pytest.approx(1, rel=EXACT)
    assert opposite.in_errors == pytest.approx(2, rel=1e-9) and opposite.alike == pytest.approx(-1, rel=1e-9)
    assert distance([f + e], [f], [f]).in_errors is None, "no error of the target's own to count in"
    assert distance([f], [f + e], [f]).alike is None
    assert distance([f], [f + e]).in_errors is None and "errors" not in str(distance([f], [f + e]))


def test_errors_with_nothing_in_common_are_the_root_of_two_apart():
    f, a, b = (drawn(seed, (200, 200))[0] for seed in (0, 1, 2))
    found = distance([f + a], [f + b], [f])
    assert found.in_errors == pytest.approx(math.sqrt(2), abs=0.02)  # 4 standard errors at 40,000 values
    assert found.alike == pytest.approx(0, abs=0.02)


def test_models_packed_or_not(llama, tokenizer, web, tmp_path, quiet):
    spec = ctp.CompressionSpec(bits=3)
    copies = []
    for seed in (0, 1):
        small, report = ctp.compress(llama, web.train.sample(8, seed), spec, **quiet)
        ctp.save(small, tmp_path / str(seed), tokenizer, report, "tiny")
        copies.append(small)
    found = ctp.weight_distance(*copies, llama)
    packed = [ctp.load(tmp_path / str(seed), device="cpu", packed=True)[0] for seed in (0, 1)]
    assert ctp.weight_distance(*packed, llama) == found and found.in_errors and found.in_errors > 0.1
    assert ctp.weight_distance(copies[0], packed[0]).apart == 0
    half = [ctp.load(tmp_path / "0", device="cpu", packed=way, dtype="bfloat16")[0] for way in (True, False)]
    assert ctp.weight_distance(*half).apart == 0, "as on a GPU, where sources are loaded packed and targets are not"


def test_gpt2_stores_its_weights_the_other_way_round(web, tokenizer, tmp_path, quiet):
    model = tiny("gpt2")
    small, report = ctp.compress(model, web.train.sample(4, 0), ctp.CompressionSpec(bits=4), **quiet)
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path, device="cpu", packed=True)
    assert ctp.weight_distance(packed, small).apart == 0
    assert [m.shape for m in block_matrices(packed)] == [m.shape for m in block_matrices(small)]


@pytest.mark.parametrize("others", [[(3, 3)], [(3, 3), (2, 2), (1, 1)], [(3, 3), (2, 3)]])
def test_other_shapes_are_refused(others):
    with pytest.raises(ctp.InputError, match="no one model"):
        distance(drawn(0, (3, 3), (2, 2)), drawn(1, *others))


def test_json():
    assert Distance(**Distance(0.1, 0.2, 1.1, 0.4).to_json()) == Distance(0.1, 0.2, 1.1, 0.4)
