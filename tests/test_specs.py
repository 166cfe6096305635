"""Settings validate themselves, name themselves, and survive JSON."""

import pytest

import ctplab as ctp


@pytest.mark.parametrize(
    "settings, tag, method, nominal",
    [
        ({"bits": 3}, "w3", "gptq", 3),
        ({"sparsity": 0.625}, "s62.5", "sparsegpt", 6),
        ({"bits": 4, "sparsity": 0.5}, "w4-s50", "joint", 2),
        ({"bits": 2, "group_size": 64}, "w2-g64", "gptq", 2),
        ({"pattern": "2:4"}, "24", "sparsegpt", 8),
    ],
)
def test_tags_follow_from_the_numbers(settings, tag, method, nominal):
    spec = ctp.CompressionSpec(**settings)
    assert (spec.tag, spec.method, spec.nominal_bits) == (tag, method, nominal)
    assert ctp.CompressionSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "settings", [{}, {"bits": 5}, {"sparsity": 1.0}, {"pattern": "4:2"}, {"sparsity": 0.5, "group_size": 32}]
)
def test_contradictions_are_refused(settings):
    with pytest.raises(ctp.InputError):
        ctp.CompressionSpec(**settings)


def test_a_rate_beyond_float32_is_refused():
    with pytest.raises(ctp.InputError, match="lr must be at most 1e6, not 1e"):
        ctp.PromptSpec(lr=1e38)


def test_unknown_keys_and_schemas_are_refused():
    good = ctp.PromptSpec().to_json()
    with pytest.raises(ctp.InputError, match="schema"):
        ctp.PromptSpec.from_json({**good, "schema": 99})
    with pytest.raises(ctp.InputError, match="unknown settings"):
        ctp.PromptSpec.from_json({**good, "tokenz": 3})
