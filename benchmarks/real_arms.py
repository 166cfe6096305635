"""The stages of ``real.py`` about arms at equal cost: the search of a rate, the arms of a level, the full model's own.

Shares are of the NLL gap that compression opened. What a treatment does for the full model tells recovery from
adaptation to the text. Two such controls stand beside the arms of a level, each at the cost of scoring: the learned
prompt in front of the full model (``full+soft``), and the learned factors and norms on the full model
(``full+scales+norms``). The stage ``controls`` gives the full model as many steps of its own, by the next-token loss,
because KL to itself has nothing to teach.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from real_bench import Bench, Found, curve
from torch import Tensor, nn

import ctplab as ctp
from ctplab.formats.checkpoint import read_manifest
from ctplab.formats.tuned import PROMPT, SOFT, changes_between
from ctplab.measure.cost import prefix_bytes
from ctplab.models import Model
from ctplab.prompts.prefix import none
from ctplab.show.tables import share, table

TUNED = ("scales", "norms")
LEVELS: dict[str, Found] = {"w3": {"bits": 3}, "w4-s50": {"bits": 4, "sparsity": 0.5}}
OBJECTIVES = {1.0: "KL", 0.5: "half KL", 0.0: "next token"}


def level(bench: Bench, name: str) -> Path:
    """The compressed folder of a level."""
    o = bench.options
    text = bench.corpus(o.corpus, o.calibration_len).train
    return bench.compressed(name, ctp.CompressionSpec(**LEVELS[name]), text.sample(o.samples, seed=o.seed))


def scores_of(found: Found, corpus: str) -> ctp.WindowScores:
    return ctp.WindowScores.from_json(found["scores"][corpus])


def full_scores(bench: Bench) -> Found:
    """The full model on the test texts; a piece that all stages share."""
    full = bench.models(bench.base)[0]
    return bench.record.piece("full", "full", lambda: bench.scores(ctp.Arm("full", full, none(full)), close=False))


def closed(full: Found, small: Found, arm: Found, corpus: str) -> ctp.Interval:
    """The share of the gap that an arm closes."""
    return ctp.recovery(*(scores_of(each, corpus) for each in (full, small, arm)))


@torch.no_grad()
def changed(model: Model, changes: Mapping[str, Tensor]) -> Model:
    """A copy of a dense model with one factor a row on its matrices, and other norms. Raises InputError for groups."""
    other = copy.deepcopy(model)
    for name, value in changes.items():
        kind, _, unit = name.partition(":")
        if kind == "norm":
            parameter = other.get_parameter(unit)
            parameter.copy_(value)
            continue
        layer = other.get_submodule(unit)
        if not isinstance(layer, nn.Linear) or value.shape[1] != 1:
            raise ctp.InputError("only one scale a row of a linear layer can be put on dense weights here")
        layer.weight.mul_(value.to(layer.weight))
    return other


def on_validation(bench: Bench, model: Model) -> Found:
    """The model on the validation windows of the text that is learned on, and of another one."""
    texts = bench.learned_on.validation, bench.corpus(bench.options.aside, bench.options.seq_len).validation
    arm = ctp.Arm("arm", model, none(model))
    return {"validation": [bench.scores(arm, [text], close=False)["scores"][text.name] for text in texts]}


def validation_ends(bench: Bench, stage: str, exact: Model) -> Found:
    """The full and the compressed model on them: what shares are measured between."""
    models = {"full": bench.models(bench.base)[0], "compressed": exact}
    return {name: bench.record.piece(stage, name, lambda m=m: on_validation(bench, m)) for name, m in models.items()}


def validation_shares(ends: Found, found: Found) -> list[ctp.Interval]:
    """The share of the gap that is closed on each of the two."""
    parts = zip(ends["full"]["validation"], ends["compressed"]["validation"], found["validation"], strict=True)
    return [ctp.recovery(*map(ctp.WindowScores.from_json, part)) for part in parts]


def rates(bench: Bench) -> None:
    """Short runs of scales and norms at 3 bits: the rate by KL, then the objective at the best rate."""
    o, record = bench.options, bench.record
    folder = level(bench, "w3")
    exact = bench.models(folder)[0]
    ends = validation_ends(bench, "rates", exact)
    rows: list[list[str]] = []

    def tried(kl: float, lr: float) -> float:
        def compute() -> Found:
            spec, name = bench.spec(kl=kl, lr=lr, steps=o.rate_steps), f"rate-{kl:g}-{lr:g}"
            learned = bench.changes(name, folder, bench.models(folder)[1], TUNED, spec)
            return on_validation(bench, changed(exact, learned.prefix.tensors)) | {"best_step": learned.best_step}

        found = record.piece("rates", f"{OBJECTIVES[kl]}, {lr:g}", compute)
        here = validation_shares(ends, found)
        rows.append([f"{lr:g}", OBJECTIVES[kl], *(each.percent for each in here), str(found["best_step"])])
        return here[0].value

    values = {lr: tried(1.0, lr) for lr in o.rates}
    best = max(values, key=lambda lr: values[lr])
    for kl in (0.5, 0.0):
        tried(kl, best)
    record.piece("rates", "best", lambda: {"lr": best})
    header = ["rate", "objective", f"{o.corpus}, validation", f"{o.aside}, validation", "best step"]
    record.table(f"Scales and norms at w3 after {o.rate_steps} steps: share of the gap closed", table(header, rows))


def best_rate(bench: Bench) -> float:
    """--lr, or what the search found, or 0.1."""
    found = bench.record.found("rates", "best")
    return bench.options.lr or (found["lr"] if found else 0.1)


def compressed_scores(bench: Bench, name: str, folder: Path) -> Found:
    """The compressed model of a level on the test texts; a piece that all stages share."""
    exact = bench.models(folder)[0]
    arm = ctp.Arm("c", exact, none(exact))
    return bench.record.piece(f"{name}-arms", "compressed", lambda: bench.scores(arm))


def tuned_scores(bench: Bench, name: str, folder: Path, what: Sequence[str], kl: float, lr: float) -> Found:
    """Learn the kinds ``what`` of the compressed ``folder``, and score what comes of it."""
    out = bench.tuned(name, folder, what, bench.spec(kl=kl, lr=lr))
    made, model = bench.tuned_arm(name, out), read_manifest(out)
    more = model["bytes"] - read_manifest(folder)["bytes"] + prefix_bytes(made.model, made.prefix)
    return bench.scores(made) | _told(model["tuned"], kl, lr, more, made.prefix.k)


def say_closed(bench: Bench, stage: str, arm: str, found: dict[str, Found]) -> None:
    """Say in a line what an arm won."""
    first, ends = bench.texts[0].name, (found["full"], found["compressed"])
    each = ", ".join(f"{t.name} {closed(*ends, found[arm], t.name).percent}" for t in bench.texts)
    bench.record.say(f"{stage}: {arm}: gap closed on {each}; KL on {first} {_kl(found[arm], first)}")


def arms(bench: Bench, name: str) -> None:
    """Every arm of a level, learned and scored, beside the full model under the same changes."""
    stage, record, lr = f"{name}-arms", bench.record, best_rate(bench)
    folder, full = level(bench, name), full_scores(bench)
    exact = bench.models(folder)[0]
    found: dict[str, Found] = {"full": full, "compressed": compressed_scores(bench, name, folder)}

    def piece(arm: str, compute: Any) -> None:
        found[arm] = record.piece(stage, arm, compute)
        say_closed(bench, stage, arm, found)
        show_arms(bench, name, found)

    def tuned(arm: str, what: Sequence[str], kl: float, lr: float = lr) -> None:
        piece(arm, lambda: tuned_scores(bench, f"{name}-{arm}", folder, what, kl, lr))

    def on_full(arm: str, source: str) -> None:
        def compute() -> Found:
            out = bench.tuned(f"{name}-{source}", folder, source.split("+"), bench.spec(lr=lr))
            model = changed(bench.models(bench.base)[0], changes_between(folder, out))
            rows = ctp.load_prompt(out / PROMPT).prefix if SOFT in source else none(model)
            return bench.scores(ctp.Arm(arm, model, rows))

        piece(arm, compute)

    def soft(arm: str, model: Model) -> None:
        def compute() -> Found:
            saved, spec = bench.prompt(f"{name}-soft", [folder], bench.spec()), bench.spec()
            found = bench.scores(ctp.Arm(arm, model, saved.prefix))
            if model is exact:
                found |= _told(saved.info, spec.kl, spec.lr, prefix_bytes(model, saved.prefix), saved.prefix.k)
            return found

        piece(arm, compute)

    tuned("scales+norms", TUNED, 1.0)
    on_full("full+scales+norms", "scales+norms")
    tuned("scales+norms+soft", (*TUNED, SOFT), 1.0)
    soft("soft", exact)
    soft("full+soft", bench.models(bench.base)[0])
    tuned("scales+norms, next token", TUNED, 0.0)
    on_full("full+scales+norms+soft", "scales+norms+soft")
    for other in bench.options.also:
        tuned(f"scales+norms, rate {other:g}", TUNED, 1.0, other)


def _told(made: Found, kl: float, lr: float, extra: int, positions: int) -> Found:
    """What a table says of an arm beside its scores. ``made``: a manifest with a learning curve."""
    spent = sum(step["seconds"] for step in made["curve"])
    told: Found = {"objective": OBJECTIVES[kl], "lr": lr, "bytes": extra, "positions": positions}
    return told | {"best_step": made["best_step"], "learning_seconds": round(spent, 1), "curve": curve(made)}


def _kl(found: Found, corpus: str) -> str:
    close = found["scores"][corpus].get("kl")
    return "-" if close is None else f"{close['value']:.3f}"


def show_arms(bench: Bench, name: str, found: dict[str, Found]) -> None:
    """The tables of a level: perplexities and shares, and how close each arm is to the full model."""
    corpora, rows, near = [text.name for text in bench.texts], [], []
    for arm, each in found.items():
        cells = [arm]
        for corpus in corpora:
            percent = closed(found["full"], found["compressed"], each, corpus).percent
            cells += [f"{scores_of(each, corpus).score.ppl:.2f}", "-" if arm in ("full", "compressed") else percent]
        paid = [f"{each['bytes']:,}", str(each["positions"])] if "bytes" in each else ["-", "-"]
        how = f"{each['objective']}, {each['lr']:g}" if "objective" in each else "-"
        rows.append([*cells, *paid, how, str(each.get("best_step", "-")), str(each.get("learning_seconds", "-"))])
        if "kl" in each["scores"][corpora[0]]:
            both = [
                (str(ctp.Interval(**s["kl"])), f"{share(ctp.Interval(**s['same']))}%") for s in each["scores"].values()
            ]
            near.append([arm, *(cell for pair in both for cell in pair)])
    header = ["arm", *(cell for corpus in corpora for cell in (corpus, "gap closed"))]
    header += ["extra bytes", "positions", "objective, rate", "best step", "learning, s"]
    steps = f"{name}: {bench.options.steps} steps of {bench.options.batch} x {bench.options.seq_len}"
    bench.record.table(f"{steps}, perplexity and share of the gap closed", table(header, rows))
    if near:
        header = ["arm", *(cell for corpus in corpora for cell in (f"{corpus}: mean KL", "same first choice"))]
        bench.record.table(f"{name}: how close to the full model", table(header, near))


def controls(bench: Bench) -> None:
    """The full model's own prompt, and its own factors and norms: what the same steps win without compression."""
    full, lr = full_scores(bench), best_rate(bench)
    exact, to_learn = bench.models(bench.base)
    grids = level(bench, "w3")

    def own_soft() -> Found:
        saved = bench.prompt("full-soft", [bench.base], bench.spec(kl=0.0))
        return bench.scores(ctp.Arm("full, own soft", exact, saved.prefix), close=False)

    def own_changes() -> Found:
        learned = bench.changes("full-scales+norms", grids, to_learn, TUNED, bench.spec(kl=0.0, lr=lr))
        model = changed(exact, learned.prefix.tensors)
        return bench.scores(ctp.Arm("full, own scales+norms", model, none(model)), close=False)

    rows = []
    for name, compute in (("own scales+norms", own_changes), ("own soft", own_soft)):
        found = bench.record.piece("controls", name, compute)
        cells = [f"full model, {name}"]
        for text in bench.texts:
            mine, before = scores_of(found, text.name), scores_of(full, text.name)
            cells += [f"{mine.score.ppl:.2f}", str(ctp.change(mine, before))]
            for each in LEVELS:
                small = bench.record.found(f"{each}-arms", "compressed")
                if small is not None:
                    part = closed(full, small, found, text.name).value - 1
                    cells[-1] += f" ({100 * part:+.0f}% of the gap of {each})"
        rows.append(cells)
    header = ["arm", *(cell for text in bench.texts for cell in (text.name, "change, nats a token"))]
    bench.record.table("The full model after as many steps of its own, by the next-token loss", table(header, rows))
