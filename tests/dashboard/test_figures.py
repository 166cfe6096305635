"""The page's figures show the numbers of their data, in the colours that those things have on paper."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from contrast import contrast

import ctplab as ctp
from ctplab.app import curves, figures, latency, marks, nearness, results, rowmap, similarity, views, worth
from ctplab.app.bench import Chosen
from ctplab.app.jobs import Job
from ctplab.app.turns import Turns
from ctplab.demo.embedded import CORPORA
from ctplab.disk import write_json
from ctplab.formats.checkpoint import read_manifest
from ctplab.measure.latency import LatencyPoint
from ctplab.measure.worth import RowWorth
from ctplab.prompts.arms import COLOURS
from ctplab.runs.stale import mark_report, stale_levels, weights_id
from ctplab.show import colours

from .made_up import report


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def test_recovery_and_answers_show_the_report():
    drawn = traces(results.recovery(report()))
    assert list(drawn) == ["soft", "bos"] and list(drawn["soft"].x) == list(CORPORA)
    assert list(drawn["soft"].y) == [0.5] * len(CORPORA) and list(drawn["bos"].y) == [0.0] * len(CORPORA)
    for name, trace in drawn.items():
        assert trace.marker.color == COLOURS[name]
        assert [*trace.error_y.array, *trace.error_y.arrayminus] == pytest.approx([0.1] * 2 * len(CORPORA))
    (bars,) = results.questions(report()).data
    assert list(bars.y) == ["full", "soft"] and list(bars.x) == [0.5, 0.5]
    assert list(bars.marker.color) == [COLOURS["full"], COLOURS["soft"]]


def test_closeness_to_the_full_model_is_listed_if_it_was_measured():
    made, one = report(), {"value": 0.25, "low": 0.2, "high": 0.3}
    assert nearness.close(made, "docs")["data"] == []  # a report of an earlier version
    made["fidelity"] = {"docs": {"soft": dict.fromkeys(("mean", "median", "p99", "same_top"), one)}}
    assert nearness.close(made, "docs")["data"] == [["soft", *["0.250 [0.200, 0.300]"] * 3, "25.0 [20.0, 30.0]%"]]
    assert nearness.close(made, "atlas-web")["data"] == []
    assert nearness.turned(made)["data"] == []
    made["flips"] = {"compressed": {"lost": 9, "won": 1, "n": 40, "p": 0.02}}
    assert nearness.turned(made)["data"] == [["compressed", 9, 1, 40, "0.02"]]


def test_levels_stand_at_their_true_bytes():
    made = report()
    made["levels"]["w4"] = {**made["levels"]["w4"], "bytes": 600_000, "ppl": {"docs": 2.5}}
    made["levels"]["w3"] = {**made["levels"]["w3"], "bytes": 500_000, "ppl": {"docs": 3.0}}
    figure = results.price(made, "docs")
    full, compressed, soft = figure.data
    assert (list(full.x), list(full.y)) == ([1_000_000], [2.0])
    assert (list(compressed.x), list(compressed.y)) == ([600_000, 500_000], [2.5, 3.0])
    assert (list(soft.x), list(soft.y)) == ([600_000, 500_000], [2.0, 2.0])
    assert [trace.marker.color for trace in figure.data] == [COLOURS[n] for n in ("full", "compressed", "soft")]
    assert figure.layout.yaxis.type == "log"


def test_beside_the_paper_everything_is_relative_to_its_own_full_model():
    ours, healed, *theirs = results.beside_the_paper(report(), "docs").data
    assert list(ours.y) == pytest.approx([1.1, 1.1]) and list(healed.y) == pytest.approx([1.0, 1.0])
    rows = results.published()
    keys = ("compressed", "printed", "corrected")
    assert [list(t.y) for t in theirs] == [[row[key] / row["full"] for row in rows] for key in keys]
    assert all(trace.marker.symbol.endswith("-open") for trace in theirs)


def test_transfer_cells_say_what_helps():
    made = report()
    made["transfer"]["w3"]["docs"] = {"compressed": 2.0, "soft": 4.0}
    table = results.heat(made)
    column = list(CORPORA).index("docs") + 1
    assert [row[0] for row in table["data"]] == ["w4 *", "w3"]
    assert [row[column] for row in table["data"]] == ["2.20 → 2.00", "2.00 → 4.00"]
    helps, hurts = (row[column] for row in table["metadata"]["styling"])
    assert "rgba(0, 158, 115" in helps and colours.HELPS == "#009E73"
    assert "rgba(213, 94, 0, 0.7)" in hurts and colours.HURTS == "#D55E00"


def test_latency_has_a_line_for_each_way_with_its_quartiles():
    spread = {"median": 5.0, "low": 4.0, "high": 9.0}
    points = [
        asdict(LatencyPoint.from_json(
            {"arm": "atlas", "attached": way, "k": k, "batch": 1, "length": 64, "new_tokens": 8,
             "first_token_ms": {**spread, "median": 5.0 + k / 25}, "tokens_per_second": spread}
        ))
        for way, k in (("none", 0), ("concatenated", 25), ("compiled", 25), ("compiled", 50))
    ]  # fmt: skip
    drawn = traces(latency.draw(points, "first_token_ms", "ms"))
    assert list(drawn) == ["concatenated", "compiled", "no prompt"]
    assert (list(drawn["compiled"].x), list(drawn["compiled"].y)) == ([25, 50], [6.0, 7.0])
    assert list(drawn["compiled"].error_y.array) == [3.0, 2.0]
    assert list(drawn["compiled"].error_y.arrayminus) == [2.0, 3.0]
    assert [trace.line.color for trace in drawn.values()] == [
        colours.ATTACHED[way] for way in ("concatenated", "compiled", "none")
    ]


def test_a_curve_stands_between_its_two_models():
    job = Job(1, "train", "learn", Turns(), total=3)
    assert not curves.curves(job.points, job.baselines, job.total).data
    job.points, job.baselines = [(0, 3.0, None), (1, 2.5, 2.0), (2, 2.4, 1.5)], {"full": 1.0, "compressed": 3.0}
    job.said = [(2, "<i>Ohio</i>")]
    drawn = traces(curves.curves(job.points, job.baselines, job.total))
    assert list(drawn["objective of each step"].y) == [3.0, 2.5, 2.4]
    assert (list(drawn["validation NLL"].x), list(drawn["validation NLL"].y)) == ([2, 3], [2.0, 1.5])
    assert drawn["objective of each step"].yaxis != drawn["validation NLL"].yaxis  # other units, other axes
    assert list(drawn["full model"].y) == [1.0, 1.0] and list(drawn["compressed model"].y) == [3.0, 3.0]
    assert curves.recovery(job.points, job.baselines) == 0.75 and "75%" in curves.told(job)
    assert "&lt;i&gt;Ohio" in curves.told(job) and "the best prompt so far" in curves.told(job)
    job.result["words"] = "scales and norms"
    assert "the best scales and norms so far" in curves.told(job) and "recover --tuned" in curves.told(job)


def test_a_histogram_shows_every_count():
    data = {"edges": [-1, 0, 1], "counts": {name: [1, i] for i, name in enumerate(colours.ROWS)}}
    data["mean"] = dict.fromkeys(colours.ROWS, 0.25)
    data["rows"] = {"low": [0.1, 0.2], "mean": [0.2, 0.3], "high": [0.3, 0.4]}
    drawn = similarity.draw(data, 100, log=True, picked=1)
    *sets, points, picked = drawn.data
    assert [list(trace.y) for trace in sets] == [[1, i, i] for i in range(4)]  # the last step has a width too
    assert [trace.line.color for trace in sets] == list(colours.ROWS.values())
    assert drawn.layout.yaxis.type == "log"
    assert (list(points.x), list(points.customdata)) == ([0.2, 0.3], [0, 1])
    assert (list(picked.x), list(picked.y)) == ([0.2, 0.3, 0.4], [1, 1, 1])
    assert len(similarity.draw(data, 100, log=True, picked=2).data) == 5  # another prompt's row


def test_worths_are_bars_in_the_colours_of_their_verdicts():
    rows = [ctp.Interval(0.02, 0.01, 0.03), ctp.Interval(-0.01, -0.02, -0.005), ctp.Interval(0.001, -0.01, 0.01)]
    chosen = Chosen("full", "small", "prompt")
    found = worth.Worths("docs", chosen, 4, ctp.Interval(0.1, 0.0, 0.2), tuple(map(RowWorth, range(3), rows)))
    drawn = {trace.name: trace for trace in worth.draw(found, picked=1).data}
    assert {name: (list(bar.x), list(bar.y)) for name, bar in drawn.items()} == {
        "helps (1)": ([0], [0.02]), "harms (1)": ([1], [-0.01]), "cannot tell (1)": ([2], [0.001])
    }  # fmt: skip
    assert drawn["helps (1)"].marker.color == colours.HELPS and drawn["harms (1)"].marker.color == colours.HURTS
    values, styles = worth.column(found, chosen, 4)
    assert values == [20.0, -10.0, 1.0, ""] and "100%" in styles[0] and "50%" in styles[1] and not styles[3]
    assert worth.column(found, Chosen("full", "small", "another"), 4) == ([""] * 4, [""] * 4)
    assert "3 of 4 rows, measured on docs" in found.words()


def test_the_map_leads_from_start_to_end():
    def spots(*ids):
        return {"ids": list(ids), "x": [float(i) for i in ids], "y": [2.0 * i for i in ids]}

    points = {"explained": [0.5, 0.25], "vocabulary": spots(1, 2, 3), "init": spots(1, 2), "learned": spots(3, 4)}
    drawn = traces(rowmap.draw_map(points | {"extra": spots(7)}, {1: "one", 2: "two", 3: "three", 7: "seven"}.get, 1))
    assert list(drawn["init → learned"].x) == [1.0, 3.0, None, 2.0, 4.0, None]
    assert list(drawn["init"].text) == ["row started as 'one'", "row started as 'two'"]
    assert list(drawn["your word"].text) == ["your token 'seven'"] and list(drawn["your word"].y) == [14.0]
    assert drawn["learned"].marker.color == COLOURS["soft"]
    ring = drawn["row 1"]
    assert (list(ring.x), list(ring.y)) == ([drawn["learned"].x[1]], [drawn["learned"].y[1]])
    assert "your word" not in traces(rowmap.draw_map(points | {"extra": spots()}, str))


def test_differences_are_words_only_one_arm_says():
    assert marks.difference("it is in Texas", "it is Ohio now") == [
        ("it is", "same"), ("in Texas", "missing"), ("Ohio now", "added"),
    ]  # fmt: skip
    assert marks.differing("a <b>", "a <c>") == '<p class="text">a <del>&lt;b&gt;</del> <ins>&lt;c&gt;</ins></p>'


def test_scores_fall_into_steps_whose_inks_can_be_read():
    assert [marks.step(v) for v in (None, 0.0, 0.1, 1.9, 4.9, 5.0, 1e9)] == ["", "s0", "s1", "s2", "s3", "s4", "s4"]
    css = (Path(views.__file__).parent / "style.css").read_text()
    pairs = re.findall(r"\.tok\.s\d \{ background: (#\w+); color: (#\w+); \}", css)
    long = [tuple(c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for c in pair) for pair in pairs]
    assert len(long) == 5 and all(contrast(ground, ink) >= 4.5 for ground, ink in long)


def test_levels_are_stale_if_their_weights_are_gone_or_others(tmp_path):
    made = report()
    assert set(stale_levels(tmp_path, "atlas", made)) == {"w4", "w3"}
    folder = ctp.Store(tmp_path, "atlas").compressed("w3")
    folder.mkdir(parents=True)
    manifest = {"schema": 1, "spec": ctp.CompressionSpec(bits=3).to_json(), "tag": "w3", "calibration": "a"}
    manifest |= {"base": "atlas", "base_fingerprint": "0", "tokenizer_fingerprint": "0", "layers": [], "bytes": 1}
    manifest |= dict.fromkeys(("bits_per_weight", "nominal_bits_per_weight", "model_bits_per_weight", "seconds"), 1.0)
    manifest |= {"untouched": [], "warnings": [], "versions": {}}
    (folder / "compression.json").write_text(json.dumps(manifest))
    found = read_manifest(folder)
    made["levels"]["w3"] = {**made["levels"]["w3"], "weights": weights_id(found)}
    assert "w3" not in stale_levels(tmp_path, "atlas", made)
    (folder / "compression.json").write_text(json.dumps({**manifest, "calibration": "b"}))
    assert "anew" in stale_levels(tmp_path, "atlas", made)["w3"]


def test_a_report_says_that_it_is_stale(tmp_path):
    made, store = report(), ctp.Store(tmp_path, "atlas")
    store.report().mkdir(parents=True)
    assert mark_report(tmp_path, "atlas") == {}
    write_json(made, store.report() / "demo.json")
    path, text = store.report() / "report.md", "# ctplab demo\n\nIt closes half of the gap.\n\n## Levels\n"
    path.write_text(text)
    for _ in range(2):  # once is enough
        assert set(mark_report(tmp_path, "atlas")) == {"w4", "w3"}
        title, mark, *rest = path.read_text().split("\n\n")
        assert (title, rest) == ("# ctplab demo", text.split("\n\n")[1:]) and "w4: its weights are gone" in mark
    write_json({**made, "levels": {"full": made["levels"]["full"]}}, store.report() / "demo.json")
    assert mark_report(tmp_path, "atlas") == {} and path.read_text() == text


@pytest.mark.parametrize(("width", "height"), figures.INSIDE)
def test_crowded_labels_are_laid_out(width, height):
    """Levels as close as those of the real demo: no label meets another."""
    made = report()
    real = {"full": (4.07e6, 1.74), "w4": (1.65e6, 1.75), "w3": (1.62e6, 1.91), "w2-g32": (1.58e6, 3.65),
            "s50": (2.75e6, 2.36), "w4-s50": (1.64e6, 2.45), "w4-s55": (1.6e6, 3.41), "s75": (2e6, 114.5)}  # fmt: skip
    made["levels"] = {tag: {"bytes": b, "ppl": {"docs": ppl}, "bits_per_weight": 4.0} for tag, (b, ppl) in real.items()}
    made["transfer"] = {tag: {"docs": {"compressed": 2.2, "soft": 2.0}} for tag in real if tag != "full"}
    figure = results.price(made, "docs")
    assert {note.text for note in figure.layout.annotations} == set(real)
    assert 3 <= len(figure.layout.yaxis.tickvals) <= 7
    low, high = figure.layout.yaxis.range
    boxes = []
    for note in figure.layout.annotations:
        x = width * (0.05 + 0.9 * (note.x - 1.58e6) / (4.07e6 - 1.58e6)) + note.ax
        y = height * (high - note.y) / (high - low) + note.ay
        half = 3 * len(note.text)
        boxes.append((x - half, y - 7, x + half, y + 7))
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(figures._meet(a, b) for a, b in pairs)
