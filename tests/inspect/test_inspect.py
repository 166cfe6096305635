"""Nearest tokens are exact, with FAISS and without it."""

import sys

import pytest
import torch

import ctplab as ctp
from ctplab.inspect.nearest import inspect_prompt, ranks_of, search, searched_rows
from ctplab.inspect.similarity import cosine_histogram, pca, project
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


@pytest.mark.parametrize("with_faiss", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("centre", [False, True])
def test_every_measure_is_exact(monkeypatch, with_faiss, metric, centre):
    """Against float64, with FAISS and without. Distances near zero are differences: hence the absolute tolerance."""
    if not with_faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    generator = torch.Generator().manual_seed(0)
    table, queries = torch.randn(500, 16, generator=generator) + 1, torch.randn(9, 16, generator=generator)
    values, ids = search(table, queries, 5, metric, centre)
    mean = table.double().mean(0) if centre else 0
    t, q = table.double() - mean, queries.double() - mean
    exact = {
        "cosine": torch.nn.functional.cosine_similarity(q[:, None], t[None], dim=-1),
        "dot": (q[:, None] * t[None]).sum(-1),
        "l2": -(q[:, None] - t[None]).square().sum(-1).sqrt(),
    }[metric]
    best = exact.topk(5)
    assert torch.equal(ids, best.indices)
    torch.testing.assert_close(values.double(), best.values.abs() if metric == "l2" else best.values, atol=1e-5, rtol=0)
    order = exact.argsort(dim=1, descending=True)
    wanted = torch.tensor([int((order[i] == 7 * i).nonzero()) for i in range(9)])
    assert torch.equal(ranks_of(table, queries, 7 * torch.arange(9), metric, centre), wanted)
    with pytest.raises(ctp.InputError, match="metric must be one of"):
        search(table, queries, 5, "euclid")


def test_rows_can_be_left_out(llama, tokenizer):
    kept = searched_rows(2100, tokenizer, drop_special=True, drop_unused=True)
    assert not set(tokenizer.all_special_ids) & set(kept.tolist()) and int(kept.max()) < len(tokenizer)
    seen = torch.tensor([5, 9, 9, 2000])
    assert searched_rows(2048, tokenizer, drop_unused=True, seen=seen).tolist() == [5, 9, 2000]
    start = prefix.from_ids(llama, torch.tensor([0, 1, 40]), "init")
    reports = inspect_prompt(llama, tokenizer, start, start, drop_special=True)
    assert [r.init_rank for r in reports] == [None, None, 0]
    with pytest.raises(ctp.InputError, match="no vocabulary rows are left"):
        searched_rows(2048, tokenizer, drop_unused=True, seen=torch.tensor([], dtype=torch.long))


def test_the_nearest_hard_prompt_is_an_arm_like_any_other(llama, tokenizer, web):
    start = prefix.random_rows(llama, 6)
    moved = ctp.Prefix("soft", start.rows * 1.1 + 0.01, start.ids)
    words = ctp.nearest_hard_prompt(llama, tokenizer, moved)
    assert words.ids == start.ids and torch.equal(words.rows, start.rows)
    assert ctp.perplexity(ctp.Arm(words.name, llama, words), web.test, limit=2).ppl > 1


def test_the_map_is_the_singular_vectors(llama):
    start = prefix.random_rows(llama, 6)
    moved = ctp.Prefix("soft", start.rows + 0.5, start.ids)
    found = project(llama, moved, start, (3, 4), sample=100)
    assert [len(found[name]["x"]) for name in ("vocabulary", "extra", "init", "learned")] == [100, 2, 6, 6]
    assert found["extra"]["ids"] == [3, 4] and found["init"]["ids"] == list(start.ids)
    assert found == project(llama, moved, start, (3, 4), sample=100)
    away = project(llama, ctp.Prefix("soft", start.rows + 50, start.ids), start, (3, 4), sample=100)
    assert away["vocabulary"] == found["vocabulary"] and away["learned"] != found["learned"]  # the axes stay
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 9)
    middle, axes, explained = pca(rows)
    _, singular, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)  # another road to the same
    torch.testing.assert_close(middle, rows.mean(0))
    torch.testing.assert_close(axes.abs(), directions[:2].abs())
    torch.testing.assert_close(explained, singular[:2] ** 2 / (singular**2).sum())
