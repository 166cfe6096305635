"""Figures show the numbers of their data, and one thing has one colour in all of them."""

import pytest
import torch
from contrast import contrast, rgb

from ctplab.errors import InputError
from ctplab.measure.attention_mass import AttentionMass
from ctplab.measure.distance import Distance
from ctplab.measure.latency import LatencyPoint, Quartiles
from ctplab.measure.pace import pace
from ctplab.measure.stats import Interval
from ctplab.measure.transfer import TransferCell
from ctplab.measure.worth import RowWorth
from ctplab.paper import figures, printed
from ctplab.prompts.arms import COLOURS
from ctplab.show import colours
from ctplab.show.axes import save, whiskers
from ctplab.show.compression import draw_levels, draw_weights
from ctplab.show.healing import draw_distances, draw_pace, draw_sources
from ctplab.show.latency import draw_latency
from ctplab.show.learning import draw_curve, draw_saved
from ctplab.show.matrices import draw_heat, draw_transfer
from ctplab.show.nearness import draw_nearness
from ctplab.show.rows import draw_worth
from ctplab.show.shares import draw_questions, draw_recovery, draw_shares

SHARE = Interval(0.3, 0.2, 0.35)
CELLS = [
    TransferCell("none", "w4", "x", False, 10.0, 10),
    TransferCell("none", "w3", "x", False, 20.0, 10),
    TransferCell("w3", "w4", "x", False, 9.0, 10, Interval(-0.1, -0.2, 0.0)),
    TransferCell("w3", "w3", "x", True, refused="another tokenizer"),
]
FAR = TransferCell("w3", "w4", "x", False, 9.0, 10, Interval(-0.1, -0.2, 0.0), SHARE, Distance(0.1, 0.1, 1.2, 0.25))
PACES = [pace("warm", [(0, 3.0), (10, 2.5)], 4.0, 2.0), pace("cold", [(0, 4.0), (10, 3.5)], 4.0, 2.0)]
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
SHARES = {"soft": Interval(0.6, 0.5, 0.8), "k = 8": Interval(-0.1, -0.3, 0.2)}
WORTH = [RowWorth(0, Interval(0.2, 0.1, 0.3)), RowWorth(1, Interval(-0.2, -0.3, -0.1))]
MASS = AttentionMass(torch.tensor([[0.01, 0.2], [0.1, 0.0]]).double(), 0.05)
RECORDS = [{"step": i, "loss": 3.0 - i, "validation": 2.0 if i else None} for i in range(2)]
NEAR = {"edges": [-1, 0, 1], "counts": {name: [1, 3] for name in colours.ROWS}}
NEAR["mean"] = dict.fromkeys(colours.ROWS, 0.25)
BYTES = {"w4": {"bytes": 1e6, "ppl": {"x": 2.5}}, "s50": {"bytes": 3e6, "ppl": {"x": 3.0}}}
FULL = {"bytes": 4e6, "ppl": {"x": 2.0}}
DRAWN = {
    "transfer": lambda: draw_transfer(CELLS),
    "distances": lambda: draw_distances([*CELLS, FAR], "t"),
    "sources": lambda: draw_sources({"held out": {1: SHARE, 8: SHARE}, "own": {1: SHARE}}, "t"),
    "pace": lambda: draw_pace(PACES),
    "heat": lambda: draw_heat({"w4": {"x": 0.5, "y": -1.0}}, "t", higher_is_better=True),
    "latency": lambda: draw_latency(POINTS),
    "shares": lambda: draw_shares(SHARES, "t"),
    "recovery": lambda: draw_recovery({"x": SHARES, "y": SHARES}, "x"),
    "questions": lambda: draw_questions(SHARES, SHARES),
    "levels": lambda: draw_levels(BYTES, FULL, "x"),
    "weights": lambda: draw_weights({"W": torch.ones(2, 3).numpy(), "error": torch.eye(3).numpy()}, "t"),
    "curve": lambda: draw_curve(RECORDS),
    "saved": lambda: draw_saved([1.0, 0.5], [0.5, -0.5], "t"),
    "nearness": lambda: draw_nearness(NEAR, ceiling=True),
    "worth": lambda: draw_worth(WORTH, MASS),
    "beside the paper": lambda: figures.beside_the_paper("table4", ROWS),
    "by level": lambda: figures.by_level("figure3", LEVELS),
    "accuracies": lambda: figures.accuracies("table8", ACCURACIES),
    "answers": lambda: figures.answers("figure1", ANSWERS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_written(tmp_path, name):
    save(DRAWN[name](), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(("ending", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_the_ending_names_the_format(tmp_path, ending, begins):
    save(draw_curve(RECORDS), tmp_path / f"x.{ending}")
    assert (tmp_path / f"x.{ending}").read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["x.jpeg2", "x", "x.txt"])
def test_any_other_ending_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no picture"):
        save(draw_curve(RECORDS), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_curve_shows_its_records():
    left, right = draw_curve(RECORDS).axes
    assert (list(left.lines[0].get_xdata()), list(left.lines[0].get_ydata())) == ([1, 2], [3.0, 2.0])
    assert (list(right.lines[0].get_xdata()), list(right.lines[0].get_ydata())) == ([2], [2.0])
    assert right.lines[0].get_color() == COLOURS["soft"]


def test_cells_stand_at_their_distance_and_refused_ones_nowhere():
    (axes,) = draw_distances([*CELLS, FAR], "t").axes
    ((line, _, _),) = axes.containers
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.25], [30.0])
    assert [text.get_text() for text in axes.texts] == ["w4"]


def test_paces_and_sources_show_percents():
    (axes,) = draw_pace(PACES).axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[50.0, 75.0], [0.0, 25.0]]
    (axes,) = draw_sources({"held out": {1: SHARE, 8: SHARE}}, "t").axes
    assert list(axes.containers[0][0].get_ydata()) == [30.0, 30.0] and list(axes.get_xticks()) == [1, 8]


def test_levels_stand_at_their_true_bytes():
    (axes,) = draw_levels(BYTES, FULL, "x").axes
    assert [tuple(spot.get_offsets()[0]) for spot in axes.collections] == [(1.0, 2.5), (3.0, 3.0)]
    assert list(axes.lines[0].get_ydata()) == [2.0, 2.0] and axes.get_yscale() == "log"
    assert {spot.get_label() for spot in axes.collections} == {"quantised", "pruned"}


def test_bars_end_at_the_values():
    (axes,) = draw_recovery({"x": SHARES}, "x").axes
    assert [bar.get_height() for bar in axes.patches] == [0.6, -0.1]
    (axes,) = draw_questions(SHARES, SHARES).axes
    assert [bar.get_height() for bar in axes.patches] == [60.0, -10.0] * 2


def test_worths_are_coloured_by_what_they_say():
    bars, heat = draw_worth(WORTH, MASS).axes[:2]
    assert [(each.lines[0].get_color(), list(each.lines[0].get_ydata())) for each in bars.containers] == [
        (colours.HELPS, [0.2]), (colours.HURTS, [-0.2]),
    ]  # fmt: skip
    assert heat.images[0].get_array().shape == (2, 2) and len(draw_worth(WORTH).axes) == 1


def test_no_two_bars_of_a_place_look_alike():
    arms = ("soft", "scales+norms", "scales+norms+codes", "scales+norms+soft", "a", "b")
    bars = draw_recovery({"docs": dict.fromkeys(arms, SHARE)}, "docs").axes[0].containers
    found = [each.patches[0].get_facecolor() for each in bars if hasattr(each, "patches")]
    assert len(found) == len(set(found)) == len(arms)


@pytest.mark.parametrize("draw", [lambda: draw_curve(RECORDS), lambda: draw_worth(WORTH)], ids=["steps", "rows"])
def test_there_are_no_half_steps_and_rows(draw):
    assert all(tick == round(tick) for tick in draw().axes[0].get_xticks())


def test_whiskers_end_at_the_bounds():
    (below, above), shares = whiskers(list(SHARES.values()), 100), list(SHARES.values())
    for share, down, up in zip(shares, below, above, strict=True):
        assert 100 * share.value - down == pytest.approx(100 * share.low)
        assert 100 * share.value + up == pytest.approx(100 * share.high)
    assert whiskers([Interval(0.5, 0.6, 0.4)]) == [[0], [0]]  # a bootstrap's rounding: matplotlib refuses less than 0


def test_latency_begins_with_no_prompt_on_every_line():
    (axes,) = draw_latency(POINTS).axes
    assert [list(bars.lines[0].get_ydata()) for bars in axes.containers] == [[5.0, 30.0]] * 2
    assert [bars.lines[0].get_color() for bars in axes.containers] == [colours.PURPLE, colours.OLIVE]


def test_a_transfer_matrix_says_every_cell():
    axes = draw_transfer(CELLS).axes[0]
    assert {text.get_text() for text in axes.texts} == {"2.72", "7.39", "2.46\n-0.100", "refused"}  # e, e², e^0.9
    assert len(axes.patches) == 1 and axes.patches[0].get_xy() == pytest.approx((0.52, 0.54))  # w3 on w3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no prompt", "w3"]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_heat_is_green_where_it_is_better(higher_is_better):
    (axes,) = draw_heat({"w4": {"x": 1.0, "y": -1.0}}, "t", higher_is_better=higher_is_better).axes
    image = axes.images[0]
    above, below = (tuple(round(255 * c) for c in image.cmap(image.norm(v))[:3]) for v in (1.0, -1.0))
    better, worse = (above, below) if higher_is_better else (below, above)
    assert better == rgb(colours.HELPS) and worse == rgb(colours.HURTS)
    assert all(contrast("#000000", ground) >= 4.5 for ground in (colours.HELPS, colours.HURTS))  # WCAG, for text


def test_nearness_is_shown_in_shares():
    (axes,) = draw_nearness(NEAR).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.25, 0.75]] * 4
    assert [line.get_color() for line in axes.lines] == list(colours.ROWS.values())


def test_colours_that_are_no_arms_are_taken_for_none_and_can_be_read():
    others = (colours.GREY, colours.PURPLE, colours.OLIVE, colours.BROWN)
    assert len({*others, *COLOURS.values()}) == len(others) + len(COLOURS)
    for colour in others:  # 3 to 1 is what WCAG asks of graphics; both are the dashboard's own grounds
        assert contrast(colour, "#FFFFFF") >= 3 and contrast(colour, "#0B0F19") >= 3
    assert colours.colour("soft") == COLOURS["soft"] and colours.colour("k = 8") == colours.GREY
