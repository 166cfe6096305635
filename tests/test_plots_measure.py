"""Figures are drawn from plain data; the interactive twins show the same numbers in the same colours."""

import pytest
import torch

from ctplab import paper, plots_measure
from ctplab.measure.latency import LatencyPoint, Spread
from ctplab.measure.recovery import from_sums
from ctplab.measure.stats import Interval
from ctplab.measure.transfer import Cell
from ctplab.plots import COLOURS

BASE = torch.ones(8)
RECOVERY = from_sums({"full": BASE, "compressed": BASE + 1, "soft": BASE + 0.4, "full+soft": BASE - 0.1}, 8)
CELLS = [
    Cell("none", "w4", "x", False, 10.0, 10),
    Cell("none", "w3", "x", False, 20.0, 10),
    Cell("w3", "w4", "x", False, 9.0, 10, Interval(-0.1, -0.2, 0.0)),
    Cell("w3", "w3", "x", True, refused="another tokenizer"),
]
POINTS = [
    LatencyPoint("dense", way, k, 1, 64, 8, Spread(5.0 + k, 4.0, 200.0), Spread(50, 40, 60))
    for way, k in (("none", 0), ("concatenated", 25), ("compiled", 25))
]
ROWS = [
    {"model": "atlas", "level": v.level, "method": v.method, "what": v.what, "printed": v.printed,
     "corrected": v.corrected, "ours": None}
    for v in paper.TABLES["table4"].values
]  # fmt: skip
MAP = {
    "explained": [0.1, 0.05],
    **{name: {"ids": [1, 2], "x": [0, 1], "y": [1, 0]} for name in ("vocabulary", "init", "learned", "extra")},
}
BYTES = [{"name": "w4", "arm": "soft", "bytes": 1e6, "value": 0.5, "low": 0.4, "high": 0.6}]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots_measure.recovery_bars(RECOVERY, "x", path),
        lambda path: plots_measure.transfer_matrix(CELLS, path),
        lambda path: plots_measure.latency(POINTS, path),
        lambda path: plots_measure.pareto(BYTES, "exact match", path),
        lambda path: plots_measure.row_map(MAP, path),
        lambda path: plots_measure.reproduced("table4", ROWS, path),
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
