"""What rows are worth, what cuts cost and which prompts were chosen, as text tables. Formats numbers; computes none."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctplab.measure.attention_mass import AttentionMass
from ctplab.measure.stats import Interval
from ctplab.measure.worth import RowWorth
from ctplab.show.tables import table


def signed(found: Interval, digits: int = 3) -> str:
    """A change with its interval: ``+0.012 [-0.003, +0.027]``."""
    return "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(found.value, found.low, found.high, n=digits)


def worth_table(found: Sequence[RowWorth], mass: AttentionMass | None = None) -> str:
    """Every row's worth, most first, and the attention on it: the mean over layers, and the layer with most of it."""
    body = []
    for row in sorted(found, key=lambda row: -row.worth.value):
        cells = [str(row.row), signed(row.worth, 4), row.verdict]
        if mass is not None:
            layers = mass.rows[:, row.row]
            cells += [f"{100 * layers.mean():.2f}%", f"{100 * layers.max():.2f}% in {int(layers.argmax())}"]
        body.append(cells)
    looks = [] if mass is None else [f"attention (even: {100 * mass.even:.2f}%)", "most, in layer"]
    return table(["row", "nats a token without it [95%]", "it", *looks], body)


def cuts_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Prompts of several lengths: perplexity, the change against the whole prompt, and the share of the gap closed."""
    closed = ["recovery [95%]"] if "recovery" in rows[0] else []
    body = []
    for row in rows:
        cells = [row["prompt"], str(row["k"]), f"{row['ppl']:.2f}", signed(Interval(**row["change"]))]
        body.append(cells + ([Interval(**row["recovery"]).percent] if closed else []))
    return table(["prompt", "k", "perplexity", "nats against the whole [95%]", *closed], body)


def chosen_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Every arm beside the choice: perplexity, the change against the choice, and the share of the gap closed."""
    closed = ["recovery [95%]"] if "recovery" in next(iter(arms.values())) else []
    body = []
    for name, row in arms.items():
        cells = [name, f"{row['ppl']:.2f}", signed(Interval(**row["change"]))]
        body.append(cells + ([Interval(**row["recovery"]).percent] if closed else []))
    return table(["prompt", "perplexity", "nats against the choice [95%]", *closed], body)


def counts_line(counts: Mapping[str, int]) -> str:
    """How often each prompt was chosen."""
    return f"of {sum(counts.values())} inputs " + ", ".join(f"{n} chose {name}" for name, n in counts.items())


def times_line(milliseconds: Mapping[str, float], arms: int, look: int, length: int) -> str:
    """What choosing costs beside reading a text."""
    choice, window = milliseconds["choice"], milliseconds["window"]
    return (
        f"Choosing among {arms} prompts by {look} tokens takes {choice:.1f} ms an input here; reading {length} tokens "
        f"behind one of them takes {window:.1f} ms (medians)."
    )
