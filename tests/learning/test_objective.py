"""The chunked loss is the plain loss, in value and gradient; teachers in memory and on disk say the same."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch.nn import functional as F

import ctplab as ctp
from ctplab.learning import objective
from ctplab.learning.objective import Taught, mixed_loss, nll, with_tail
from ctplab.learning.teacher import MemoryTeacher, cached_teacher

N, D, V = 23, 6, 31


@pytest.fixture
def few(web):
    """A split of 20 windows."""
    return replace(web.test, stream=web.test.stream[: 20 * 48])


@pytest.fixture
def parts(monkeypatch):
    """Hidden states, head, targets and a teacher's log-probabilities, in float64; chunks of 4 rows."""
    monkeypatch.setattr(objective, "CHUNK", 4 * V)
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(D, V, dtype=torch.float64).requires_grad_(False)
    return hidden, head, torch.randint(V, (N,)), (2 * torch.randn(N, V, dtype=torch.float64)).log_softmax(-1)


def same(a, b, hidden):
    """Equal values and gradients, to the rounding of float64."""
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (a, b)), rtol=1e-10, atol=1e-12)


def test_chunked_cross_entropy_is_torchs(parts):
    hidden, head, targets, _ = parts
    ours = 3 * mixed_loss(hidden, head, V, targets)
    same(ours, 3 * F.cross_entropy(head(hidden), targets, reduction="sum"), hidden)
    assert nll(hidden.detach(), head, V, targets).item() == pytest.approx(ours.item() / 3, rel=1e-12)


@pytest.mark.parametrize("kl", [0.3, 1.0])
def test_the_mix_with_kl_is_torchs(parts, kl):
    hidden, head, targets, q = parts
    ours = mixed_loss(hidden, head, V, targets, kl, lambda rows, student: q[rows])
    logp = head(hidden).log_softmax(-1)
    plain = kl * F.kl_div(logp, q, log_target=True, reduction="sum") + (1 - kl) * F.nll_loss(
        logp, targets, reduction="sum"
    )
    same(ours, plain, hidden)


@pytest.mark.parametrize("k", [1, 5, V])
def test_top_k_is_kl_over_k_plus_one_outcomes(parts, k):
    """Against autograd through the bucketed distributions; k = V against the exact KL."""
    hidden, head, targets, q = parts
    top, ids = q.topk(k, -1)
    ours = mixed_loss(hidden, head, V, targets, 1.0, lambda rows, student: with_tail(top[rows], ids[rows], student))
    logp = head(hidden).log_softmax(-1)
    plain = (top.exp() * (top - logp.gather(1, ids))).sum()
    if k < V:
        rest, own = (1 - x.gather(1, ids).exp().sum(-1) for x in (q, logp))
        plain = plain + (rest * (rest / own).log()).sum()
    else:
        assert plain.item() == pytest.approx(F.kl_div(logp, q, log_target=True, reduction="sum").item(), rel=1e-12)
    same(ours, plain, hidden)


@pytest.mark.parametrize("kl", [0.0, 0.3, 1.0])
def test_few_rows_of_a_chunk_at_a_time_are_the_whole_chunk(parts, kl, monkeypatch):
    """A CPU's cache takes 3 rows, then 1, of chunks of 4; the teacher is a model's head or rows of its own."""
    hidden, head, targets, _ = parts
    other = torch.nn.Linear(D, V, dtype=torch.float64).requires_grad_(False)
    said = other(hidden.detach()).log_softmax(-1)
    for teacher in (Taught(hidden.detach(), other), lambda rows, student: said[rows]):
        for most in (3 * V, 1):
            monkeypatch.setattr(objective, "CACHED", 4 * V)
            whole = mixed_loss(hidden, head, V, targets, kl, teacher)
            monkeypatch.setattr(objective, "CACHED", most)
            same(mixed_loss(hidden, head, V, targets, kl, teacher), whole, hidden)


def test_no_gradient_or_logits_of_full_size_are_held(parts):
    """What the graph keeps of the loss is the gradient of the hidden states, nothing of width V."""
    hidden, head, targets, _ = parts
    loss = mixed_loss(hidden, head, V, targets)
    assert [tuple(t.shape) for t in loss.grad_fn.saved_tensors] == [(N, D)]


def test_half_precision_states_get_fp32_softmax(parts):
    hidden, _, targets, _ = parts
    half, low = hidden.detach().bfloat16().requires_grad_(True), torch.nn.Linear(D, V, dtype=torch.bfloat16)
    loss = mixed_loss(half, low.requires_grad_(False), V, targets)
    assert loss.dtype == torch.float32
    plain = F.cross_entropy(low(half).float(), targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)  # the same logits, summed in fp32


def test_the_cached_teacher_says_what_the_model_says(llama, few, tmp_path):
    numbers = torch.tensor([3, 1])
    ids = few.windows[numbers]
    exact = llama(ids).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    student = tiny("neox")(ids).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    rows = slice(7, 60)
    torch.testing.assert_close(MemoryTeacher(llama).target(numbers, ids)(rows, student[rows]), exact[rows])
    whole = cached_teacher(llama, few, tmp_path, k=2048).target(numbers, ids)(rows, student[rows])
    torch.testing.assert_close(whole, exact[rows], rtol=1e-3, atol=1e-3)  # kept in half precision: 11 bits
    less = cached_teacher(llama, few, tmp_path, k=10).target(numbers, ids)(rows, student[rows])
    assert less.exp().sum(-1) == pytest.approx(torch.ones(53), abs=1e-3)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    cached_teacher(llama, few, tmp_path, k=10)
    assert len(made) == 2 and made == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ctp.InputError, match="top-k must be in 1"):
        cached_teacher(llama, few, tmp_path, k=0)
    for path in made:
        path.write_bytes(b"x")
    again = cached_teacher(llama, few, tmp_path, k=10).target(numbers, ids)(rows, student[rows])
    assert torch.equal(again, less)  # damaged files are made anew


def test_learning_from_cache_follows_learning_from_memory(llama, web, few, tmp_path, quiet):
    teacher = tiny("llama")
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    spec = ctp.PromptSpec(tokens=4, steps=6, batch=4, lr=0.05, warmup=2, kl=0.7, evaluate_every=3, validation_windows=4)
    cached = cached_teacher(teacher, few, tmp_path, k=2048)
    runs = [ctp.learn(llama, few, web.validation, spec, teacher=t, **quiet).steps for t in (teacher, cached)]
    # log-probabilities in half precision
    assert [s.loss for s in runs[0]] == pytest.approx([s.loss for s in runs[1]], rel=2e-3)
    refused = {
        "both need the same": (replace(cached, vocabulary=7), few),
        "other text or windows": (cached, web.test),
    }
    for message, (wrong, split) in refused.items():
        with pytest.raises(ctp.InputError, match=message):
            ctp.learn(llama, split, web.validation, spec, teacher=wrong, **quiet)
