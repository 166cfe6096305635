"""The stages of ``real.py`` about weights that a prompt never saw: more copies to learn on, pace, and dtype.

Every prompt takes the same number of steps in all, however many copies take turns, so the curve is one of equal cost.
The first copy to learn on is the 3-bit level itself. The others differ from it and from each other in the seed, in the
number of windows, and in turn in the text. The four held-out copies share no setting with any of these: another text,
other seeds, number and length of windows, and three of them other options of the solver. ``copies.py`` has the same
design for the embedded model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from copies import together
from real_arms import LEVELS, TUNED, best_rate, full_scores, level, scores_of
from real_bench import Bench, Found, curve

import ctplab as ctp
from ctplab.formats.checkpoint import MANIFEST
from ctplab.formats.tuned import changes_between, fold
from ctplab.measure.pace import Pace, pace
from ctplab.models import Model
from ctplab.prompts.prefix import none
from ctplab.runs.variants import variants
from ctplab.show.gaps import pace_table
from ctplab.show.tables import table

SPEC = ctp.CompressionSpec(**LEVELS["w3"])
STAGE = "copies"
CHANGES = ("act_order", "damp=0.05", "act_order+damp=0.1")
"""What three of the four held-out copies differ in beyond text, seed, number and length of windows."""
LOOKED_AT = 64
"""Validation windows of the pace, at most."""


def sources(bench: Bench, n: int) -> list[Path]:
    """The level's own folder and n - 1 more copies."""
    o, first = bench.options, level(bench, "w3")
    texts = [bench.corpus(o.corpus, o.seq_len).train, bench.corpus(o.other, o.seq_len).validation]
    folders = [first]
    for i in range(1, n):
        windows = texts[i % 2].sample(max(1, o.samples // (2 if i % 4 < 2 else 4)), seed=o.seed + i)
        folders.append(bench.compressed(f"source-{i}", SPEC, windows))
    return folders


def held_out(bench: Bench) -> dict[str, Path]:
    """The four copies that nothing is learned on."""
    o, length = bench.options, 3 * bench.options.calibration_len // 4
    text, samples = bench.corpus(o.aside, length).validation, max(1, 2 * o.samples // 5)
    making = ctp.Making(SPEC, o.aside, samples, length, seed=900)
    folders = {}
    for i, each in enumerate(variants(making, CHANGES)):
        folders[each.name] = bench.compressed(f"held-{i}", each.making.spec, text.sample(samples, seed=900 + i))
    return folders


def behind(bench: Bench, model: Model, rows: Any = None) -> Found:
    """A model's scores on the texts of this stage: the first two."""
    arm = ctp.Arm("arm", model, none(model) if rows is None else rows)
    return bench.scores(arm, bench.texts[:2], close=False)


def copies(bench: Bench) -> None:
    """Prompts learned through 1, 2, 4 and 8 copies; and scales and norms carried over."""
    record, full, counts = bench.record, full_scores(bench), bench.options.counts
    own, held = level(bench, "w3"), held_out(bench)
    models = {name: bench.models(folder)[0] for name, folder in ({"own": own} | held).items()}

    def everywhere(rows: Any) -> Found:
        return {"on": {name: behind(bench, model, rows) for name, model in models.items()}}

    def apart() -> Found:
        exact = bench.models(bench.base)[0]
        return {name: ctp.weight_distance(models["own"], models[name], exact).to_json() for name in held}

    small, far = record.piece(STAGE, "compressed", lambda: everywhere(None)), record.piece(STAGE, "distances", apart)
    found: dict[str, Found] = {}

    corpora = [text.name for text in bench.texts[:2]]

    def share(name: str, which: list[str], corpus: str) -> ctp.Interval:
        parts = [[scores_of(full, corpus)] * len(which)]
        parts += [[scores_of(each["on"][copy], corpus) for copy in which] for each in (small, found[name])]
        return ctp.recovery(*map(together, parts))

    def piece(piece: str, name: str, compute: Callable[[], Found]) -> None:
        found[name] = record.piece(STAGE, piece, compute)
        rows, each = [], []
        for name in found:
            cells = [name]
            for corpus in corpora:
                home, away = share(name, ["own"], corpus), share(name, list(held), corpus)
                kept = f"{100 * away.value / home.value:.0f}%" if home.low > 0 else "-"
                cells += [home.percent, away.percent, kept]
            rows.append(cells)
            each.append([name, *(share(name, [copy], corpora[1]).percent for copy in held)])
        header = ["learned through", *(f"{c}: {what}" for c in corpora for what in ("own copy", "held out", "kept"))]
        told = (f"{what} {cell}" for what, cell in zip(header, rows[-1], strict=True))
        record.say(f"{STAGE}: {', '.join(told)}")
        title = f"Prompts on copies that they never saw, {bench.options.steps} steps each"
        record.table(title, table(header, rows))
        each.append(["(how alike its errors and the own copy's are)", *(f"{far[c]['alike']:.2f}" for c in held)])
        record.table(f"The same on each held-out copy, {corpora[1]}", table(["learned through", *held], each))

    def carried() -> Found:
        tuned = bench.tuned("w3-scales+norms", own, TUNED, bench.spec(lr=best_rate(bench)))
        on = {"own": behind(bench, bench.tuned_arm("tuned", tuned).model)}
        for name, folder in held.items():
            on[name] = behind(bench, bench.tuned_arm("carried", carry(bench, folder, own, tuned)).model)
        return {"on": on}

    def prompt(n: int, steps: int) -> Found:
        saved = learned_through(bench, n, steps)
        return everywhere(saved.prefix) | {"best_step": saved.info["best_step"], "copies": saved.info["copies"]}

    if (start := bench.from_rows()[1]) is not None:
        piece("start", "rows that all go on from", lambda: everywhere(start))
    for n in sorted(counts, key=lambda n: (n != 1, -n)):  # the two ends of the curve first
        name = f"{n} {'copy' if n == 1 else 'copies'}"
        piece(name, name, lambda n=n: prompt(n, bench.options.steps))
    piece("carried", "scales+norms of the own copy, put on the others", carried)
    if longer := bench.options.longer:
        name = f"{max(counts)} copies, {longer} steps"
        piece(name, name, lambda: prompt(max(counts), longer))


def learned_through(bench: Bench, n: int, steps: int | None = None) -> ctp.SavedPrompt:
    """The prompt of n copies; that of one is the level's own."""
    changes, earlier = bench.from_rows()
    spec = bench.spec(steps=steps or bench.options.steps, **changes)
    return bench.prompt("w3-soft" if n == 1 else f"copies-{n}", sources(bench, n), spec, earlier=earlier)


def carry(bench: Bench, folder: Path, own: Path, tuned: Path) -> Path:
    """Another copy with the factors and norms that made ``tuned`` of ``own`` (``ctplab tune --like``)."""
    out = bench.scratch / "carried" / f"{folder.name}-{tuned.name}"
    if not (out / MANIFEST).exists():
        fold(folder, out, changes_between(own, tuned), {"what": list(TUNED), "from": str(folder)})
    return out


def paces(bench: Bench) -> None:
    """Steps to a share of the gap on a copy that nothing was learned on: from nothing, and from another copy's result.

    Shares are on the validation windows, as while learning, so they have no intervals.
    """
    o, record, text = bench.options, bench.record, bench.learned_on.validation
    folder, lr = next(iter(held_out(bench).values())), best_rate(bench)
    own, most = level(bench, "w3"), max(o.counts)
    short = {"steps": o.pace_steps, "evaluate_every": max(1, o.pace_steps // 60), "validation_windows": LOOKED_AT}

    def nll(model: Model) -> float:
        return ctp.window_scores(ctp.Arm("arm", model, none(model)), text, limit=LOOKED_AT).score.mean

    ends = record.piece(
        "pace", "ends", lambda: {"full": nll(bench.models(bench.base)[1]), "small": nll(bench.models(folder)[1])}
    )

    def from_prompt(n: int) -> Found:
        spec = bench.spec(**short, **({"init": "prompt"} if n else {}))
        earlier = learned_through(bench, n).rows()[0] if n else None
        saved = bench.prompt(f"pace-{n}", [folder], spec, earlier=earlier)
        first = nll_behind(bench, bench.models(folder)[1], saved)
        return {"points": [(0, first), *curve(saved.info)]}

    def from_changes(warm: bool) -> Found:
        place = folder
        if warm:
            tuned = bench.tuned("w3-scales+norms", own, TUNED, bench.spec(lr=lr))
            place = carry(bench, folder, own, tuned)
        name = f"pace-tuned-{'warm' if warm else 'cold'}"
        learned = bench.changes(name, place, bench.models(place)[1], TUNED, bench.spec(lr=lr, **short))
        looks = [(s.step + 1, s.validation) for s in learned.steps if s.validation is not None]
        return {"points": [(0, learned.before), *looks]}

    runs: dict[str, Callable[[], Found]] = {"prompt, cold": lambda: from_prompt(0)}
    for n in sorted({1, most}):
        runs[f"prompt of {n} other {'copy' if n == 1 else 'copies'}"] = lambda n=n: from_prompt(n)
    runs |= {"scales+norms, cold": lambda: from_changes(False), "scales+norms carried over": lambda: from_changes(True)}
    found: list[Pace] = []
    for name, compute in runs.items():
        points = record.piece("pace", name, compute)["points"]
        found.append(pace(name, [(step, value) for step, value in points], ends["small"], ends["full"]))
    reach = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    record.table(f"Steps to a share of the gap on a copy never seen, {o.corpus} validation", pace_table(found, reach))


def nll_behind(bench: Bench, model: Model, saved: ctp.SavedPrompt) -> float:
    """Validation NLL a token behind the rows that a prompt started from."""
    arm = ctp.Arm("init", model, saved.rows()[1])
    return ctp.window_scores(arm, bench.learned_on.validation, limit=LOOKED_AT).score.mean


def dtypes(bench: Bench) -> None:
    """A copy that differs in one thing only: the dtype that compression computed in."""
    o, record, own = bench.options, bench.record, level(bench, "w3")
    other = "float32" if bench.dtype == "bfloat16" else "bfloat16"
    windows = bench.corpus(o.corpus, o.calibration_len).train.sample(o.samples, seed=o.seed)
    folder, full = bench.compressed(f"w3-{other}", SPEC, windows, other), full_scores(bench)
    saved = learned_through(bench, 1)
    rows = []
    for name, place in (("own copy", own), (f"computed in {other}", folder)):
        model = bench.models(place)[0]
        apart = str(ctp.weight_distance(bench.models(own)[0], model, bench.models(bench.base)[0]))
        small = record.piece("dtype", f"{name}, compressed", lambda m=model: behind(bench, m))
        soft = record.piece("dtype", f"{name}, prompt", lambda m=model: behind(bench, m, saved.prefix))
        cells = [name, apart]
        for text in bench.texts[:2]:
            parts = [scores_of(each, text.name) for each in (full, small, soft)]
            cells += [f"{parts[1].score.ppl:.2f}", f"{parts[2].score.ppl:.2f}", ctp.recovery(*parts).percent]
        rows.append(cells)
    header = ["target", "weights apart by"]
    header += [f"{text.name}: {what}" for text in bench.texts[:2] for what in ("compressed", "prompt", "gap closed")]
    record.table("The prompt of one copy on a copy computed in another dtype", table(header, rows))
