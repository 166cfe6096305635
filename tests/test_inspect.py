"""Nearest tokens are exact, with FAISS and without it."""

import sys

import pytest
import torch

import ctplab as ctp
from ctplab.inspect.nearest import inspect_prompt, search
from ctplab.inspect.similarity import cosine_histogram
from ctplab.prompts import prefix


@pytest.mark.parametrize("with_faiss", [True, False])
def test_search_is_exact(monkeypatch, with_faiss):
    if not with_faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    generator = torch.Generator().manual_seed(0)
    table, queries = torch.randn(500, 16, generator=generator), torch.randn(9, 16, generator=generator)
    similarity, ids = search(table, queries, 5)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None].double(), table[None].double(), dim=-1)
    best = cosine.topk(5)
    assert torch.equal(ids, best.indices)
    torch.testing.assert_close(similarity.double(), best.values, rtol=0, atol=1e-6)  # fp32 inner products


def test_untrained_rows_are_their_own_tokens(llama, tokenizer):
    start = prefix.random_rows(llama, 6, name="init")
    for report in inspect_prompt(llama, tokenizer, start, start):
        assert report.init_rank == 0 and report.drift == 0
        assert report.nearest[0] == (report.init, pytest.approx(1, abs=1e-4))


def test_histogram_counts_every_cosine(llama):
    start = prefix.random_rows(llama, 6)
    moved = ctp.Prefix("soft", start.rows + 0.1, start.ids)
    data = cosine_histogram(llama, moved, start, top=50)
    assert {name: sum(counts) for name, counts in data["counts"].items()} == dict.fromkeys(data["counts"], 300)
    assert len(data["edges"]) == 41
