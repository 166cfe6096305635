"""Fidelity to the full model: an independent float64 loop, exact cases, quantiles and flips."""

import numpy as np
import pytest
import torch
from commands import run, run_json

import ctplab as ctp
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir
from ctplab.measure.fidelity import divergence
from ctplab.measure.stats import quantile
from ctplab.measure.tasks.evaluate import TaskResult, task_flips
from ctplab.prompts import prefix


@pytest.fixture
def pair(model):
    """The full model, and behind five random rows as the arm to compare."""
    return ctp.Arm("full", model, prefix.none(model)), ctp.Arm("soft", model, prefix.random_rows(model, 5))


def test_agrees_with_an_independent_float64_loop(pair, web):
    full, arm = pair
    windows = web.test.windows[:3, :40]
    found = ctp.fidelity(arm, full, windows)
    doubled = full.model.double()
    wanted, same = [], []
    for window in windows:
        p = doubled(window[None], use_cache=False).logits[0].log_softmax(-1)
        behind = torch.tensor(arm.prefix.ids + tuple(window.tolist()))
        q = doubled(behind[None], use_cache=False).logits[0][5:].log_softmax(-1)
        for t in range(39):
            wanted.append(sum(float(a.exp() * (a - b)) for a, b in zip(p[t], q[t], strict=True)))
            same.append(int(p[t].argmax()) == int(q[t].argmax()))
    full.model.float()
    torch.testing.assert_close(found.kl, torch.tensor(wanted, dtype=torch.float64), rtol=1e-3, atol=1e-6)  # fp32 model
    assert found.same.tolist() == same
    assert found.window.tolist() == [0] * 39 + [1] * 39 + [2] * 39
    assert found.position.tolist() == 3 * list(range(1, 40))
    assert found.mean.value == pytest.approx(np.mean(wanted), rel=1e-4)


def test_the_full_model_is_faithful_to_itself(pair, web):
    found = ctp.fidelity(pair[0], pair[0], web.test, limit=4)
    assert found.same_top.value == 1 and found.p99.value == found.mean.value == 0


def test_masked_targets_are_not_compared(pair, web):
    full, arm = pair
    windows = web.test.windows[:2]
    mask = torch.zeros(windows.numel(), dtype=torch.bool)
    mask[[3, 7, windows.shape[1] + 5]] = True
    split = ctp.Split("some", "test", windows.flatten(), windows.shape[1], mask)
    found, whole = ctp.fidelity(arm, full, split), ctp.fidelity(arm, full, windows)
    assert (found.window.tolist(), found.position.tolist()) == ([0, 0, 1], [3, 7, 5])
    chosen = [2, 6, windows.shape[1] - 1 + 4]
    torch.testing.assert_close(found.kl, whole.kl[chosen], rtol=0, atol=0)


def test_spans_cover_all_targets(pair, web):
    full, arm = pair
    found = ctp.fidelity(arm, full, web.test, limit=4)
    spans = found.spans((0, 8, 32))
    assert [(s.first, s.last) for s in spans] == [(1, 7), (8, 31), (32, web.test.seq_len - 1)]
    counts = [s.last - s.first + 1 for s in spans]
    mean = sum(n * s.kl.value for n, s in zip(counts, spans, strict=True)) / sum(counts)
    assert mean == pytest.approx(found.mean.value)


def test_kl_of_logits_by_hand():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    q = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    kl, same = divergence(p.log(), q.log())
    assert kl.tolist() == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2)])
    assert same.tolist() == [False, True]


def test_a_quantile_and_its_interval():
    values = torch.arange(1.0, 101)
    found = quantile(values, torch.arange(100), 0.5)
    assert found.value == 50 and found.low < 50 < found.high
    alone = quantile(values, torch.zeros(100, dtype=torch.long), 0.99)
    assert (alone.value, alone.low, alone.high) == (99, 99, 99)  # one group: every draw is the same
    picks = torch.randint(100, (4000, 100), generator=torch.Generator().manual_seed(1))
    limits = np.quantile(np.quantile(values.numpy()[picks], 0.5, axis=1, method="inverted_cdf"), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(limits), abs=2)  # two Monte Carlo samples of the same


def test_flips_count_both_ways():
    marks = {"acc": [1.0, 1.0, 0.0, 0.0, 1.0]}, {"acc": [1.0, 0.0, 1.0, 0.0, 0.0]}
    found = task_flips(*(TaskResult({}, m) for m in marks), metric="acc")
    assert (found.n, found.lost, found.won, found.p) == (5, 2, 1, 1.0)
    with pytest.raises(ctp.InputError, match="same questions"):
        task_flips(TaskResult({}, marks[0]), TaskResult({}, {"acc": [1.0]}), metric="acc")


def test_on_the_command_line(capsys, tmp_path):
    small, prompt, few = data_dir() / SHOWCASE, data_dir() / "prompt", ("--windows", "3", "--seq-len", "48")
    command = ("score", small, "--prompt", prompt, "--against", "atlas", *few, "--out", tmp_path / "kept")
    found = run_json(capsys, *command, "--tasks", "atlas", "--limit", "8")
    close = found["corpora"]["atlas-web"]["fidelity"]
    assert close["n_tokens"] == 3 * 47 and 0 < close["same_top"]["value"] < 1 < len(close["by_position"])
    assert set(found["flips"]["atlas"]) == {"n", "lost", "won", "p"} and found["flips"]["atlas"]["n"] == 8
    code, out, _ = run(capsys, *command)
    assert code == 0 and "same first choice" in out and "1 to 15" in out
    recover = ("recover", "--full", "atlas", "--compressed", small, "--prompt", prompt, "--skip", "full+own,lora")
    found = run_json(capsys, *recover, "--fidelity", "--out", tmp_path, *few)["fidelity"]["atlas-web"]
    assert "full" not in found and found["soft"] == close
    assert found["full+soft"]["mean"]["value"] < found["soft"]["mean"]["value"] < found["random"]["mean"]["value"]
