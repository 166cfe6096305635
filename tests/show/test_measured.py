"""Figures are drawn from plain data; the interactive twins show the same numbers in the same colours."""

import pytest
import torch
from conftest import scored

from ctplab.measure.latency import LatencyPoint, Quartiles
from ctplab.measure.recovery import from_scores
from ctplab.measure.stats import Interval
from ctplab.measure.transfer import TransferCell
from ctplab.paper import figures, printed
from ctplab.show import measured
from ctplab.show.plots import COLOURS

BASE = torch.ones(8)
SUMS = {"full": BASE, "compressed": BASE + 1, "soft": BASE + 0.4, "full+soft": BASE - 0.1}
RECOVERY = from_scores({name: scored(nll) for name, nll in SUMS.items()})
CELLS = [
    TransferCell("none", "w4", "x", False, 10.0, 10),
    TransferCell("none", "w3", "x", False, 20.0, 10),
    TransferCell("w3", "w4", "x", False, 9.0, 10, Interval(-0.1, -0.2, 0.0)),
    TransferCell("w3", "w3", "x", True, refused="another tokenizer"),
]
POINTS = [
    LatencyPoint("dense", way, k, 1, 64, 8, Quartiles(5.0 + k, 4.0, 200.0), Quartiles(50, 40, 60))
    for way, k in (("none", 0), ("concatenated", 25), ("compiled", 25))
]
ROWS = [
    {"model": "atlas", "paper_model": v.model, "level": v.level, "method": v.method, "what": v.what, "corpus": v.what,
     "printed": v.printed, "corrected": v.corrected, "ours": None}
    for v in printed.TABLES["table4"].values
]  # fmt: skip
LEVELS = [
    {"model": model, "paper_model": "OPT-1.3B", "corpus": "c4", "level": level, "method": method, "ours": 9.0,
     "printed": 59.0 if level == "2-bit" else None}
    for model in ("OPT-1.3B", "tiny")
    for level in ("fp16", "4-bit", "2-bit", "75%")
    for method in (("none",) if level == "fp16" else ("none", "soft"))
]  # fmt: skip
ACCURACIES = [
    {"task": "piqa", "metric": "acc_norm", "level": level, "method": method, "printed": printed,
     "ours": {"value": 0.5, "low": 0.4, "high": 0.6}}
    for level, method, printed in (("full", "none", 0.7), ("4-bit", "none", 0.69), ("4-bit", "soft", None))
]  # fmt: skip
ANSWERS = [
    {"level": "4-bit", "arm": arm, "question": "Where is Tulsa?", "answer": answer}
    for arm, answer in (("full", "It is in $Oklahoma$, " * 4), ("soft", "\x1e"))
]
MAP = {
    "explained": [0.1, 0.05],
    **{name: {"ids": [1, 2], "x": [0, 1], "y": [1, 0]} for name in ("vocabulary", "init", "learned", "extra")},
}
BYTES = [{"name": "w4", "arm": "soft", "bytes": 1e6, "value": 0.5, "low": 0.4, "high": 0.6}]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: measured.recovery_bars(RECOVERY, "x", path),
        lambda path: measured.transfer_matrix(CELLS, path),
        lambda path: measured.latency(POINTS, path),
        lambda path: measured.pareto(BYTES, "exact match", path),
        lambda path: measured.row_map(MAP, path),
        lambda path: figures.beside_the_paper("table4", ROWS, path),
        lambda path: figures.by_level("figure3", LEVELS, path),
        lambda path: figures.accuracies("table8", ACCURACIES, path),
        lambda path: figures.answers("figure1", ANSWERS, path),
    ],
)
def test_figures_are_written(tmp_path, draw):
    draw(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_interactive_twins_show_the_same_numbers():
    pytest.importorskip("plotly", reason="needs plotly (pip install 'ctplab[app]')")
    from ctplab import plots_interactive

    bars = {bar.name: bar for bar in plots_interactive.recovery_bars(RECOVERY, "x").data}
    assert set(bars) == {"soft", "full+soft"} and bars["soft"].x[0] == pytest.approx(0.6)
    assert all(bar.marker.color == COLOURS[name] for name, bar in bars.items())
    heat = plots_interactive.transfer_matrix(CELLS).data[0]
    assert heat.z[0][0] == -0.1 and heat.z[0][1] is None and heat.hovertext[0][1] == "another tokenizer"
    lines = {line.name: line for line in plots_interactive.latency(POINTS).data}
    assert list(lines["dense, compiled"].y) == [5.0, 30.0]
    spots = {spots.name: spots for spots in plots_interactive.row_map(MAP, {1: "one"}).data}
    assert spots["init"].hovertext == ("one", "2")
    data = {"edges": [-1, 0, 1], "counts": {name: [1, 2] for name in ("soft", "init", "real", "random")}, "mean": {}}
    assert len(plots_interactive.histogram(data).data) == 4


def test_interactive_curve_and_levels():
    pytest.importorskip("plotly", reason="needs plotly (pip install 'ctplab[app]')")
    from ctplab import plots_interactive

    records = [{"step": i, "loss": 3.0 - i, "validation": 2.0 if i else None} for i in range(2)]
    training, validation = plots_interactive.curve(records).data
    assert (list(training.x), list(training.y)) == ([1, 2], [3.0, 2.0])
    assert (list(validation.x), list(validation.y)) == ([2], [2.0]) and validation.line.color == COLOURS["soft"]
    full = {"bytes": 4e6, "ppl": {"x": 2.0}}
    found = {"w4": {"bytes": 1e6, "ppl": {"x": 2.5}}, "s50": {"bytes": 3e6, "ppl": {"x": 3.0}}}
    figure = plots_interactive.levels(found, full, "x")
    packed, dense = (trace for trace in figure.data if trace.name in ("packed", "dense"))
    assert (list(packed.x), list(dense.x), list(packed.y)) == ([1.0, 3.0], [4.0, 4.0], [2.5, 3.0])
    (best,) = (trace for trace in figure.data if trace.name == "full")
    assert figure.layout.yaxis.type == "log" and list(best.y) == [2.0, 2.0]
