"""What an arm costs: bytes as counted by hand, differences of clocks, and the order of the table. Nothing is timed."""

from dataclasses import replace

import pytest
import torch
from conftest import scored
from torch import tensor

import ctplab as ctp
from ctplab.measure import cost as module
from ctplab.measure.cost import Cost, costs, prefix_bytes, with_times
from ctplab.measure.latency import Quartiles
from ctplab.measure.recovery import from_scores
from ctplab.prompts import prefix
from ctplab.prompts.prefix import Prefix
from ctplab.show.tables import arms_table, by_cost


def arms_of(model):
    """Nothing in front, seven rows of the vocabulary, seven that were learned from them."""
    rows = prefix.random_rows(model, 7)
    learned = Prefix("soft", rows.rows + 0.01, rows.ids)
    return [ctp.Arm("bare", model, prefix.none(model)), ctp.Arm("random", model, rows), ctp.Arm("soft", model, learned)]


def test_bytes_and_positions(llama):
    found = costs(arms_of(llama), {"bare": 6})
    assert {name: (c.bytes, c.positions) for name, c in found.items()} == {
        "bare": (6, 0),
        "random": (7 * 4, 7),  # the numbers of its tokens
        "soft": (7 * 32 * 2, 7),  # half precision
    }
    assert not found["bare"].nothing and costs(arms_of(llama))["bare"].nothing
    kv = ctp.KVPrefix("kv", ((torch.zeros(1, 2, 7, 8), torch.zeros(1, 2, 7, 8)),) * 3)
    assert prefix_bytes(llama, kv) == 3 * 2 * (2 * 7 * 8) * 2


def test_times_are_differences_within_a_round(llama, monkeypatch):
    arms = arms_of(llama)
    full, rounds = ctp.Arm("full", llama, prefix.none(llama)), iter(range(1, 100))
    slow = {"full": (1.0, 2.0), "bare": (1.0, 2.0), "random": (1.0, 2.0), "soft": (1.5, 2.75)}
    load = {"now": 0.0}

    def clock(arm, batch, new_tokens):
        if arm is full:
            load["now"] = 10.0 * next(rounds)  # a machine that gets slower and slower: no difference shows it
        return tuple(load["now"] + seconds for seconds in slow[arm.name])

    monkeypatch.setattr(module, "timed", clock)
    found = with_times(costs(arms), arms, full, length=8, new_tokens=4, repeats=3)
    same = lambda ms: Quartiles(pytest.approx(ms), pytest.approx(ms), pytest.approx(ms))  # noqa: E731
    assert found["bare"].read_ms == found["bare"].write_ms == same(0.0)
    assert found["soft"].read_ms == same(1000 * 0.5 / 8) and found["soft"].write_ms == same(1000 * 0.75 / 3)
    assert found["soft"].bytes == costs(arms)["soft"].bytes


def test_times_of_real_runs_and_refusals(llama):
    arms = arms_of(llama)
    full = ctp.Arm("full", llama, prefix.none(llama))
    found = with_times(costs(arms), arms, full, length=4, new_tokens=2, repeats=1)
    assert all(isinstance(c.read_ms, Quartiles) and isinstance(c.write_ms, Quartiles) for c in found.values())
    with pytest.raises(ctp.InputError, match="2 new tokens"):
        with_times(costs(arms), arms, full, new_tokens=1)
    with pytest.raises(ctp.InputError, match="tokens"):
        with_times(costs(arms), arms, full, length=100_000)


def test_arms_of_equal_cost_stand_together():
    paid = {"soft": Cost(200, 7), "compressed": Cost(0, 0), "random": Cost(28, 7), "scales": Cost(0, 0)}
    names = ["full", "compressed", "soft", "random", "full+soft", "scales"]
    ordered = ["full", "compressed", "scales", "random", "soft", "full+soft"]
    assert by_cost(names, paid) == ordered
    found = from_scores({name: scored(tensor([1.0 + 0.1 * i])) for i, name in enumerate(names)})
    lines = arms_table(found, paid).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ordered
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[5:7]] for line in lines}
    assert cells["soft"] == ["200", "7"] and cells["full"] == ["-", "-"] and cells["scales"] == ["0", "0"]
    assert "ms" not in lines[0]
    ms = Quartiles(0.5, 0.25, 1.0)
    timed = arms_table(found, {**paid, "soft": replace(paid["soft"], read_ms=ms, write_ms=ms)})
    assert timed.count("+0.500 [+0.250, +1.000]") == 2
