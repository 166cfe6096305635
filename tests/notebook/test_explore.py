"""The notebooks' explorers and live curve, without a browser: a test moves the controls and the figures must follow."""

import sys

import pytest
import torch
from torch.nn import functional as F

import ctplab as ctp
from ctplab.errors import InputError
from ctplab.inspect.similarity import binned, nearness
from ctplab.learning.learned import Step
from ctplab.notebook import explore
from ctplab.notebook.live import live_curve
from ctplab.notebook.widgets import WIDGET, Explorer
from ctplab.prompts import prefix
from ctplab.show.learning import draw_curve

needs_widgets = pytest.mark.skipif("not __import__('importlib').util.find_spec('ipywidgets')", reason="no ipywidgets")


def draw(k: int = 2, word: str = "a"):
    if k > 3:
        raise InputError("k is at most 3")
    return draw_curve([{"step": k, "loss": 1.0, "validation": None}]), f"{word}{k}"


@needs_widgets
def test_a_moved_control_redraws_and_a_refused_value_says_why():
    explorer = Explorer(draw, k=(1, 2, 3, 4), word=("a", "b"))
    first = explorer.picture
    assert {name: control.value for name, control in explorer.controls.items()} == {"k": 2, "word": "a"}
    assert set(explorer._repr_mimebundle_()) == {WIDGET, "image/png", "text/plain"}
    explorer.controls["word"].value = "b"
    assert explorer.text == "b2"
    explorer.controls["k"].value = 3
    assert explorer.text == "b3" and explorer.picture != first
    drawn = explorer.picture
    explorer.controls["k"].value = 4
    assert explorer.text == "k is at most 3" and explorer.picture == drawn


def test_without_ipywidgets_there_is_the_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle = Explorer(draw, k=(1, 2, 3))._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"} and bundle["text/plain"] == "a2"


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("centre", [False, True])
def test_nearness_against_float64_loops(metric, centre):
    """Real and untrained rows leave out themselves, even where others are nearer (dot). Sums in fp32: hence 1e-4."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 8, generator=generator) + 0.5
    start = ctp.Prefix("init", table[[3, 7]].clone(), (3, 7))
    moved = ctp.Prefix("soft", start.rows + 0.3, (3, 7))
    found = nearness(table, moved, start, top=5, metric=metric, centre=centre)
    assert {name: tuple(values.shape) for name, values in found.items()} == dict.fromkeys(found, (2, 5))

    def expected(row: torch.Tensor, own: int | None) -> list[float]:
        mean = table.double().mean(0) if centre else torch.zeros(8, dtype=torch.float64)
        values = []
        for i, other in enumerate(table.double()):
            a, b = row.double() - mean, other - mean
            near = {"cosine": F.cosine_similarity(a, b, dim=0), "dot": a @ b, "l2": -(a - b).norm()}[metric]
            values += [] if i == own else [float(near)]
        return [abs(v) if metric == "l2" else v for v in sorted(values, reverse=True)[:5]]

    for i, own in enumerate((3, 7)):
        torch.testing.assert_close(found["soft"][i].tolist(), expected(moved.rows[i], None), rtol=0, atol=1e-4)
        torch.testing.assert_close(found["init"][i].tolist(), expected(start.rows[i], own), rtol=0, atol=1e-4)


def test_bins_lose_no_value_at_the_edge():
    assert sum(binned({"real": torch.tensor([[1.0000001, -1.0, 0.2]])}, -1, 1, 10)["counts"]["real"]) == 3


@needs_widgets
def test_every_explorer_follows_its_controls(llama, tokenizer, web):
    soft, start = prefix.random_rows(llama, 4, seed=1), prefix.random_rows(llama, 4, seed=2, name="init")
    small, _ = ctp.compress(llama, web.train.sample(4), ctp.CompressionSpec(bits=2))
    W, X = torch.randn(16, 32), torch.randn(32, 200)
    for explorer in (
        explore.layer(W, 2 * X @ X.T / 200),
        explore.first_rows(llama, small, tokenizer, soft, web.test),
        explore.nearest(llama, tokenizer, soft, start),
    ):
        for name, control in explorer.controls.items():
            before = explorer.picture
            control.index = (control.index + 1) % len(control.options)
            assert explorer.picture != before, name


def test_live_curve_redraws_one_figure_and_leaves_none(monkeypatch):
    display = pytest.importorskip("IPython.display", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
    shown = []

    class Handle:
        def update(self, figure, raw=False):
            shown.append(figure)

    def first(figure, display_id, raw=False):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr(display, "display", first)
    monkeypatch.setattr("ctplab.notebook.live.SECONDS", 0)
    steps = [Step(i, 2.0 - i, 0.1, 0.01, 100.0, 1.5 if i else None) for i in range(3)]
    assert list(live_curve(steps, total=4, label="learn")) == steps
    *figures, gone = shown
    assert gone == {"text/plain": ""} and len(figures) == 3
    assert figures[-1].axes[0].get_title().startswith("Learning: step 3 of 4, ")
    assert list(figures[-1].axes[0].lines[0].get_ydata()) == [2.0, 1.0, 0.0]
    del shown[:]
    assert list(live_curve([1, 2], total=2, label="score")) == [1, 2]  # everything else is a line, which goes too
    assert shown[0]["text/plain"].startswith("score: 1 of 2, ") and shown[-1] == {"text/plain": ""}
