"""Attention by bfloat16 products against float64's, and when it stands in for the model's own."""

import pytest
import torch
from torch.nn import functional as F

from ctplab.compression import attention
from ctplab.compression.attention import causal, switched

UNIT = 2**-8
"""A unit in the last place of bfloat16, relative. Each rounding is off by half of it at most."""


def numbers(groups: int, common: float, n: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of 6 heads with keys and values of ``groups``. All keys have ``common`` times one direction in them."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, heads, 32).transpose(1, 2) for heads in (6, groups, groups))
    return query + common, key + common * torch.randn(32), value


def error(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    exact = F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=0.2, enable_gqa=True
    )
    return float((causal(query, key, value, 0.2).transpose(1, 2) - exact).abs().max() / value.abs().max())


@pytest.mark.parametrize(("groups", "n"), [(6, 300), (2, 128), (1, 5), (3, 1)])
def test_it_is_attention(groups, n):
    """Every score, weight and sum is rounded once; a score of 6 by half a unit moves a weight by 3 units."""
    assert error(*numbers(groups, 0, n)) < 4 * UNIT


def test_what_all_keys_share_costs_no_precision():
    """It makes scores of up to 50, which bfloat16 would round by up to an eighth."""
    query, key, value = numbers(6, 4)
    assert (0.2 * query @ key.transpose(2, 3)).abs().max() > 50
    assert error(query, key, value) < 8 * UNIT


def test_later_tokens_do_not_matter():
    """They move the mean of the keys, which changes nothing but roundings."""
    query, key, value = numbers(2, 0)
    out = causal(query, key, value, 0.2)
    key[:, :, 200:], value[:, :, 200:] = -key[:, :, 200:], 9
    assert (causal(query, key, value, 0.2)[:, :200] - out[:, :200]).abs().max() < 4 * UNIT * value[
        :, :, :200
    ].abs().max()


@torch.no_grad()
def test_it_stands_in_for_plain_causal_attention_only(llama, monkeypatch):
    ids, calls = torch.arange(3, 43)[None], []
    block = llama.model.layers[0]
    plain = llama(ids).logits

    def counted(*args):
        calls.append(args)
        return causal(*args)

    monkeypatch.setattr(attention, "causal", counted)
    with switched(block):
        assert llama.config._attn_implementation == attention.NAME
        llama.model.layers[0].self_attn(
            torch.randn(1, 8, llama.config.hidden_size),
            position_embeddings=llama.model.rotary_emb(plain, torch.arange(8)[None]),
            attention_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool),
        )
        assert not calls, "a mask is for the model's own kernel"
        angles = llama.model.rotary_emb(plain, torch.arange(8)[None])
        x = torch.randn(1, 8, llama.config.hidden_size)
        found = block.self_attn(x, position_embeddings=angles, attention_mask=None)[0]
        assert len(calls) == 1
    expected = block.self_attn(x, position_embeddings=angles, attention_mask=None)[0]
    assert (found - expected).abs().max() < 4 * UNIT * expected.abs().max()
    assert llama.config._attn_implementation == "sdpa"
    assert torch.equal(llama(ids).logits, plain), "all is as it was"
