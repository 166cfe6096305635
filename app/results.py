"""Tab *Results*: what the runs in the run folder found. Reads files; measures nothing.

Tuned models are in ``tunings.py``, sweeps in ``sweeps.py``.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

import ctplab as ctp
from ctplab.app import figures, nearness, sweeps, tunings
from ctplab.app.bench import PRIVATE, Bench
from ctplab.app.header import Header
from ctplab.app.views import size
from ctplab.paper.printed import TABLES
from ctplab.runs.stale import mark_report, stale_levels
from ctplab.show.colours import HELPS, HURTS, colour

STALE = "⚠ "
NOTHING = "No demo yet in `{runs}`. Run `ctplab demo --out {runs}` (some minutes), then open this tab again."
FILES = ["arm", "file", "windows", "tokens", "summed NLL", "windows' fingerprint"]
NOMINAL_BITS = {"3-bit": 3.0, "50% + 4-bit": 2.0}
SOFT = ("soft", "learned on C4")


def published() -> list[dict[str, Any]]:
    """The paper's perplexities on C4, for every model and level with a prompted one (tables 1, 4 and 6)."""
    found = []
    for table in (TABLES["table1"], TABLES["table4"], TABLES["table6"]):
        values = {
            (v.model, v.level, "soft" if v.method in SOFT else v.method): v for v in table.values if v.what == "C4"
        }
        for (model, level, method), soft in values.items():
            if method == "soft":
                found.append(
                    {
                        "name": f"{model}, {level}",
                        "bits": NOMINAL_BITS[level],
                        "full": values[model, "fp16", "none"].printed,
                        "compressed": values[model, level, "none"].printed,
                        "printed": soft.printed,
                        "corrected": soft.corrected,
                    }
                )
    return found


def found_runs(runs: Path) -> list[str]:
    """Models with a report, newest first."""
    reports = sorted(runs.glob("*/report/demo.json"), key=lambda path: -path.stat().st_mtime)
    return [path.parent.parent.name for path in reports]


def read(runs: Path, name: str | None) -> dict[str, Any] | None:
    """One report; None if it is missing or damaged."""
    try:
        return json.loads((ctp.Store(runs, name or "").report() / "demo.json").read_text())
    except (OSError, ValueError):
        return None


def price(result: dict[str, Any], corpus: str) -> go.Figure:
    """Perplexity (log) against the bytes that a level really takes, with and without the prompt."""
    figure = figures.blank(420, "bytes on disk", f"perplexity on {corpus}")
    full = result["levels"]["full"]
    levels = {tag: level for tag, level in result["levels"].items() if tag != "full"}
    showcase = result["showcase"]

    def add(name: str, style: str, symbol: str, tags: list[str], x: list[float], y: list[float]) -> None:
        figure.add_scatter(
            x=x, y=y, text=tags, mode="markers", name=name,
            marker={"size": 11, "symbol": symbol, "color": colour(style)},
            hovertemplate="%{text}: %{y:.3f} at %{x:,} bytes",
        )  # fmt: skip

    add("full model", "full", "star", ["full"], [full["bytes"]], [full["ppl"][corpus]])
    add("compressed", "compressed", "circle", list(levels), [v["bytes"] for v in levels.values()],
        [v["ppl"][corpus] for v in levels.values()])  # fmt: skip
    measured = {tag: cell[corpus]["soft"] for tag, cell in result["transfer"].items() if tag in levels}
    add(f"with the prompt learned on {showcase}", "soft", "diamond", ["" for _ in measured],
        [levels[tag]["bytes"] for tag in measured], list(measured.values()))  # fmt: skip
    figures.logarithmic(figure, [y for trace in figure.data for y in trace.y])
    figures.labels(figure, [(level["bytes"], level["ppl"][corpus], tag) for tag, level in result["levels"].items()])
    figure.update_xaxes(tickformat=".2s")
    return figure


def beside_the_paper(result: dict[str, Any], corpus: str) -> go.Figure:
    """Perplexity relative to each full model's, so that models of any size share an axis; hollow: the paper's."""
    figure = figures.blank(420, "bits a weight", "perplexity / full model's")
    base = result["levels"]["full"]["ppl"][corpus]
    tags = [tag for tag in result["transfer"] if tag in result["levels"] and tag != "full"]
    bits = [result["levels"][tag]["bits_per_weight"] for tag in tags]
    for kind, style in (("compressed", "compressed"), ("soft", "soft")):
        figure.add_scatter(
            x=bits, y=[result["transfer"][tag][corpus][kind] / base for tag in tags], text=tags, mode="markers",
            name=f"{kind} (ours)", marker={"size": 10, "color": colour(style)},
            hovertemplate="%{text}: %{y:.2f} times the full model's",
        )  # fmt: skip
    rows = published()
    for name, style, symbol, key in (
        ("compressed (paper)", "compressed", "circle-open", "compressed"),
        ("soft (paper, as printed)", "soft", "diamond-open", "printed"),
        ("soft (paper, corrected)", "soft", "circle-open", "corrected"),
    ):
        figure.add_scatter(
            x=[row["bits"] for row in rows],
            y=[row[key] / row["full"] for row in rows],
            text=[row["name"] for row in rows],
            mode="markers",
            name=name,
            marker={"size": 12, "symbol": symbol, "color": colour(style), "line": {"width": 2}},
            hovertemplate="%{text}: %{y:.2f} times the full model's",
        )
    figure.add_hline(y=1, line={"dash": "dot", "color": figures.GREY})
    figures.logarithmic(figure, [y for trace in figure.data for y in trace.y])
    figure.update_layout(legend={"font": {"size": 11}})
    return figure


def recovery(result: dict[str, Any]) -> go.Figure:
    """Share of the NLL gap closed, with 95% intervals: the prompt next to its controls."""
    figure = figures.blank(420, "", "share of the gap closed")
    corpora = list(result["recovery"])
    for arm in result["recovery"][corpora[0]]:
        shares = [ctp.Interval(**result["recovery"][corpus][arm]) for corpus in corpora]
        figure.add_scatter(
            x=corpora, y=[share.value for share in shares], mode="markers", name=arm, offsetgroup=arm,
            marker={"size": 10, "color": colour(arm)}, error_y=figures.whiskers(shares),
        )  # fmt: skip
    figure.update_layout(scattermode="group", scattergap=0.4)
    figure.add_hline(y=1, line={"dash": "dot", "color": figures.GREY})
    figure.add_hline(y=0, line={"dash": "dot", "color": figures.GREY})
    ticks = {-2.0: "−200%", -1.0: "−100%", -0.5: "−50%", 0.0: "compressed<br>0%", 0.5: "50%", 1.0: "full<br>100%"}
    figure.update_yaxes(tickvals=list(ticks), ticktext=list(ticks.values()), range=[-2, 1.5])
    figure.update_layout(margin={"l": 92})
    return figure


def questions(result: dict[str, Any]) -> go.Figure:
    """Exact match on the closed-book questions with 95% intervals."""
    figure = figures.blank(420, "exact match", "")
    arms = result["questions"]
    shares = [ctp.Interval(a["exact_match"], a["low"], a["high"]) for a in arms.values()]
    figure.add_bar(
        y=list(arms), x=[share.value for share in shares], showlegend=False, orientation="h",
        marker={"color": [colour(name) for name in arms]}, error_x=figures.whiskers(shares),
    )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin={"l": 92})
    return figure


def heat(result: dict[str, Any], old: Collection[str] = ()) -> dict[str, Any]:
    """The transfer matrix as coloured cells: green where the prompt helps, orange-red where it hurts."""
    corpora = list(next(iter(result["transfer"].values())))
    data, styling = [], []
    for tag, cells in result["transfer"].items():
        data.append([(STALE if tag in old else "") + (f"{tag} *" if tag == result["showcase"] else tag)])
        styling.append([""])
        for corpus in corpora:
            before, after = cells[corpus]["compressed"], cells[corpus]["soft"]
            strength = min(1.0, abs(after / before - 1))
            tone = figures.faint(HELPS if after < before else HURTS, round(0.1 + 0.6 * strength, 2))
            data[-1].append(f"{before:.2f} → {after:.2f}")
            styling[-1].append(f"background-color: {tone}")
    return {"headers": ["target", *corpora], "data": data, "metadata": {"styling": styling}}


def cell_runs(runs: Path, name: str, tag: str, corpus: str) -> dict[str, Any]:
    """The result files behind one cell of the matrix."""
    store, data = ctp.Store(runs, name), []
    for arm in ("compressed", "soft"):
        path = store.score(tag, arm, corpus)
        try:
            kept = json.loads(path.read_text())
            nll = kept["result"]["nll"]
            data.append(
                [arm, str(path), len(nll), kept["result"]["n_tokens"], round(sum(nll), 1), kept["key"]["windows"]]
            )
        except (OSError, ValueError, KeyError, TypeError):
            data.append([arm, f"{path} (not there)", "", "", "", ""])
    return {"headers": FILES, "data": data}


def build(bench: Bench, header: Header, tab: gr.Tab) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    told = gr.Markdown(NOTHING.format(runs=bench.runs), elem_id="results-told")
    with gr.Column(visible=False) as box:
        with gr.Row():
            run = gr.Dropdown([], label="Run", elem_id="run")
            corpus = gr.Dropdown([], label="Corpus", elem_id="results-corpus")
        with gr.Row():
            levels = gr.Plot(label="Perplexity against true bytes", elem_id="levels", min_width=320)
            paper = gr.Plot(label="Beside the paper (hollow: its values, at nominal bits)", elem_id="paper",
                            min_width=320)  # fmt: skip
        with gr.Row():
            shares = gr.Plot(label="Recovery and its controls, 95% intervals", elem_id="recovery", min_width=320)
            exact = gr.Plot(label="Closed-book questions, 95% intervals", elem_id="exact", min_width=320)
        close = gr.Dataframe(
            headers=nearness.CLOSE, label="How close to the full model: KL in nats a token, and the same first choice",
            elem_id="close", interactive=False, wrap=True, visible=False,
        )  # fmt: skip
        flips = gr.Dataframe(
            headers=nearness.FLIPS, label="Closed-book answers that turned, against the full model (McNemar's p)",
            elem_id="flips", interactive=False, wrap=True, visible=False,
        )  # fmt: skip
        gr.Markdown(
            "**Transfer**: perplexity without → with the prompt (* learned there; green helps, orange-red hurts)."
        )
        matrix = gr.Dataframe(label="Transfer (click a cell for its runs)", elem_id="transfer", interactive=False)
        files = gr.Dataframe(headers=FILES, label="Runs behind the cell", elem_id="cell", interactive=False, wrap=True,
                             visible=False)  # fmt: skip

    def refresh(name: str | None, corpus: str | None) -> list[Any]:
        names = found_runs(bench.runs)
        name = name if name in names else (names[0] if names else None)
        result = read(bench.runs, name)
        if result is None:
            return [NOTHING.format(runs=bench.runs), gr.update(visible=False), *[gr.skip()] * 9]
        corpora = list(result["perplexity"])
        corpus = corpus if corpus and corpus in corpora else str(result["learned_on"])
        full = result["levels"]["full"]
        words = (
            f"**{name}**, {size(full['bytes'])}, seed {result['seed']}: {len(result['levels']) - 1} levels, prompt of "
        )
        words += (
            f"{result['prompt']['spec']['tokens']} tokens learned on {result['learned_on']} at {result['showcase']}."
        )
        old = mark_report(bench.runs, str(name)) or stale_levels(bench.runs, str(name), result)
        if old:
            words += "\n\n" + STALE + "**Stale**: " + "; ".join(f"{tag}: {reason}" for tag, reason in old.items())
            words += ". Run `ctplab demo` again for numbers on the weights that lie there now."
        near, turned = nearness.close(result, corpus), nearness.turned(result)
        return [
            words, gr.update(visible=True), gr.update(choices=names, value=name),
            gr.update(choices=corpora, value=corpus), price(result, corpus), beside_the_paper(result, corpus),
            recovery(result), questions(result), heat(result, old), gr.update(value=near, visible=bool(near["data"])),
            gr.update(value=turned, visible=bool(turned["data"])),
        ]  # fmt: skip

    def pick(event: gr.SelectData, name: str | None) -> Any:
        result = read(bench.runs, name)
        row, column = event.index
        if result is None or column == 0:
            return gr.skip()
        tag = list(result["transfer"])[row]
        found = cell_runs(bench.runs, str(name), tag, list(result["transfer"][tag])[column - 1])
        return gr.update(value=found, visible=True)

    gr.on(
        [tab.select, run.input, corpus.input], refresh, [run, corpus],
        [told, box, run, corpus, levels, paper, shares, exact, matrix, close, flips], show_progress="hidden",
        queue=False, **PRIVATE,
    )  # fmt: skip
    matrix.select(pick, run, files, queue=False, show_progress="hidden", **PRIVATE)
    tunings.build(bench, tab)
    sweeps.build(bench, tab)
