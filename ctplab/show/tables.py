"""Measurements as text tables. Formats numbers; computes none."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ctplab.learning.memory import Memory
from ctplab.measure.cost import Cost
from ctplab.measure.fidelity import Fidelity
from ctplab.measure.latency import LatencyPoint, Quartiles
from ctplab.measure.lens import Lens
from ctplab.measure.recovery import OverSeeds, Recovery
from ctplab.measure.stats import Interval
from ctplab.measure.tasks.transferred import TaskCell
from ctplab.measure.transfer import TransferCell


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with padded columns: reads well in a terminal as well."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def share(found: Interval) -> str:
    """A share of right answers in %: ``58.3 [55.0, 61.5]``."""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def memory_table(found: dict[str, Memory]) -> str:
    """GB (10^9 bytes) by kind, for every model, without kinds that no model has."""
    kinds = [field.name for field in fields(Memory) if any(getattr(memory, field.name) for memory in found.values())]
    rows = [
        [name, *(f"{getattr(memory, kind) / 1e9:.3f}" for kind in kinds), f"{memory.total / 1e9:.1f}"]
        for name, memory in found.items()
    ]
    return table(["GB", *kinds, "peak"], rows)


def arms_table(found: Recovery, costs: Mapping[str, Cost] | None = None) -> str:
    """NLL, perplexity and recovery of every arm.

    With ``costs`` arms of equal cost stand together, and each says what it costs beyond the compressed model. The full
    model and its controls, which have no such cost, come first and last.
    """
    header = ["arm", "NLL/token", "perplexity", "recovery [95%]"]
    rows = {
        name: [name, f"{arm.nll / arm.n_tokens:.4f}", f"{arm.ppl:.2f}", arm.recovery.percent]
        for name, arm in found.items()
    }
    if costs is None:
        return table(header, list(rows.values()))
    timed = any(cost.read_ms for cost in costs.values())
    header += ["extra bytes", "positions"] + timed * ["extra ms a token read", "written"]
    body = []
    for name in by_cost(found, costs):
        cost = costs.get(name)
        cells = ["-", "-"] if cost is None else [f"{cost.bytes:,}", str(cost.positions)]
        if timed:
            cells += ["-" if ms is None else _spread(ms) for ms in (cost and cost.read_ms, cost and cost.write_ms)]
        body.append(rows[name] + cells)
    return table(header, body)


def by_cost(names: Iterable[str], costs: Mapping[str, Cost]) -> list[str]:
    """Arms in the order of what they cost: the full model, then by positions and bytes, then the full model's controls.

    Arms of equal cost keep their order.
    """

    def place(name: str) -> tuple[int, int, int]:
        if name not in costs:
            return (0 if name == "full" else 2, 0, 0)
        return (1, costs[name].positions, costs[name].bytes)

    return sorted(names, key=place)


def _spread(ms: Quartiles) -> str:
    return f"{ms.median:+.3f} [{ms.low:+.3f}, {ms.high:+.3f}]"


def fidelity_table(found: Mapping[str, Fidelity | dict[str, Any]]) -> str:
    """How close each arm is to the full model: KL in nats, and the share of targets with the same first choice.

    ``found``: measurements, or their summaries from JSON.
    """
    rows = []
    for name, close in found.items():
        told = close.summary() if isinstance(close, Fidelity) else close
        kl = [str(Interval(**told[key])) for key in ("mean", "median", "p99")]
        rows.append([name, *kl, f"{share(Interval(**told['same_top']))}%"])
    return table(["against full", "mean KL [95%]", "median", "99th percentile", "same first choice"], rows)


def p_text(p: float) -> str:
    """A p value to two digits; one that is too small for a number says so."""
    return f"{p:.2g}" if p > 1e-300 else "< 1e-300"


def flips_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Answers of every arm that the full model has right and it has wrong, and the other way round."""
    rows = [[arm, str(f["lost"]), str(f["won"]), str(f["n"]), p_text(f["p"])] for arm, f in found.items()]
    return table(["against full", "right to wrong", "wrong to right", "of", "p"], rows)


def spans_table(close: Fidelity) -> str:
    """The same by position in the window: does the effect of a prompt fade as the text grows?"""
    rows = [[f"{s.first} to {s.last}", str(s.kl), f"{share(s.same)}%"] for s in close.spans()]
    return table(["position", "mean KL [95%]", "same first choice"], rows)


def seeds_table(spread: dict[str, OverSeeds]) -> str:
    """Mean and standard deviation of recovery over seeds."""
    n = next(iter(spread.values())).n
    rows = [[name, f"{100 * value.mean:+.1f}%", f"{100 * value.sd:.1f}"] for name, value in spread.items()]
    return table([f"recovery over {n} seeds", "mean", "sd, points"], rows)


def matrix_table(cells: Sequence[TransferCell]) -> str:
    """Source x target of one corpus: perplexity and the change against no prompt; * marks the diagonal."""

    def text(cell: TransferCell) -> str:
        change = "" if cell.change is None else f"  {_bounds(asdict(cell.change))}"
        return f"{cell.ppl:.2f}{change}"

    return _matrix(cells, text)


def task_matrix_table(cells: Sequence[TaskCell]) -> str:
    """Source x target of one task: right answers in %, the difference to no prompt in points, and McNemar's p."""

    def text(cell: TaskCell) -> str:
        right, paired = "" if cell.share is None else share(cell.share), cell.against_none
        return right if paired is None else f"{right}  {100 * paired.difference.value:+.1f}, p {p_text(paired.p)}"

    return _matrix(cells, text)


def _matrix(cells: Sequence[Any], text: Callable[[Any], str]) -> str:
    """A line a source, a column a target; below it, why pairs were refused."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        shown = "refused" if cell.refused else text(cell)
        rows.setdefault(cell.source, {})[cell.target] = f"{shown} *" if cell.diagonal else shown
    refused = [f"{cell.source} on {cell.target}: {cell.refused}" for cell in cells if cell.refused]
    body = [[source, *(row[target] for target in targets)] for source, row in rows.items()]
    return "\n".join([table(["source (* learned on this target)", *targets], body), *refused])


def latency_table(points: Sequence[LatencyPoint]) -> str:
    """Medians with quartiles."""

    def cell(value: Quartiles) -> str:
        return f"{value.median:.1f} [{value.low:.1f}, {value.high:.1f}]"

    rows = [[p.arm, p.attached, str(p.k), cell(p.first_token_ms), cell(p.tokens_per_second)] for p in points]
    first = points[0]
    setting = f"batch {first.batch}, {first.length} + {first.new_tokens} tokens"
    return table([setting, "prompt", "k", "first token, ms", "tokens/s after it"], rows)


def lens_table(seen: Lens) -> str:
    """A row a token: surprisal of every arm, and KL to the full model if that is among them."""
    names = list(seen.arms)
    others = [name for name in names if name != "full" and seen.arms[name].kl is not None]
    rows = []
    for t, token in enumerate(seen.tokens):
        cells = [seen.arms[name].surprisal[t] for name in names]
        cells += [(seen.arms[name].kl or [])[t] for name in others]
        rows.append([repr(token), *("-" if value is None else f"{value:.2f}" for value in cells)])
    return table([f"token (nats), start: {seen.start}", *names, *(f"KL full||{name}" for name in others)], rows)


def reproduced_table(rows: Sequence[dict[str, Any]]) -> str:
    """The paper's number as printed and as corrected, ours, and ours as the released evaluator would print it.

    The last column is the change in nats a token against the same model with nothing in front.
    """

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    body = [
        [row["model"], row["level"], row["method"], row["corpus"], str(row["k"]),
         *(cell(row[key]) for key in ("printed", "corrected", "ours", "ours_as_published")), _bounds(row["change"])]
        for row in rows
    ]  # fmt: skip
    header = ["model", "level", "prompt", "corpus", "k", "printed", "corrected", "ours", "ours as published"]
    return table([*header, "change [95%]"], body)


def _bounds(change: dict[str, float] | None) -> str:
    """A change with its interval, from JSON."""
    return "-" if change is None else f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    """Table 8: right answers in %, the paper's beside them, and the paired difference of prompted to unprompted."""
    body = []
    for row in rows:
        paired = row.get("against_none")
        printed = "-" if row["printed"] is None else f"{100 * row['printed']:.1f} ± {100 * row['printed_stderr']:.1f}"
        ours = share(Interval(**row["ours"]))
        against = "-" if paired is None else f"{_bounds(paired['difference'])}, p {p_text(paired['p'])}"
        body.append([row["level"], row["method"], row["task"], row["metric"], printed, ours, against])
    header = ["level", "prompt", "task", "metric", "printed, %", "ours, % [95%]", "against none [95%], McNemar"]
    return table(header, body)


def records_table(rows: Sequence[dict[str, Any]]) -> str:
    """Any list of flat records: a row each, columns in the order of their first appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(f"{k} {cell(v)}" for k, v in value.items())
        return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)

    return table(keys, [[cell(row.get(key)) for key in keys] for row in rows])


def plan_table(steps: dict[str, dict[str, Any]]) -> str:
    """What a sweep has to do, by step: cells, done ones, tokens and estimated seconds of the others."""
    rows = [
        [step, str(row["cells"]), str(row["done"]), f"{row['tokens']:,}", _seconds(row["seconds"])]
        for step, row in steps.items()
    ]
    return table(["step", "cells", "done", "tokens to process", "about"], rows)


def _seconds(seconds: float | None) -> str:
    return "not measured yet" if seconds is None else f"{seconds:.0f} s"


def sweep_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, body) of what a sweep found: perplexities, and the share of the NLL gap that each prompt closes."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    settings, arms = ("model", "tag", "prompt", "learned_on", "seed", "scored_on"), ("full", "compressed", "soft")
    body = []
    for row in rows:
        names = ["-" if row[key] is None else str(row[key]) for key in settings]
        closed = "-" if row["recovery"] is None else Interval(**row["recovery"]).percent
        body.append([*names, *(cell(row[arm]) for arm in arms), closed])
    header = ["model", "level", "prompt", "learned on", "seed", "scored on", *arms, "recovery [95%]"]
    return header, body


def sweep_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same as text."""
    return table(*sweep_cells(rows))
