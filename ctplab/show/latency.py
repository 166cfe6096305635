"""The figure of what a prompt costs in time (Figure 5). Data in, figure out."""

from collections.abc import Sequence
from typing import Any

from ctplab.measure.latency import LatencyPoint
from ctplab.show.axes import new_axes
from ctplab.show.colours import ATTACHED

STYLES = ("-", "--", ":", "-.")


def draw_latency(points: Sequence[LatencyPoint]) -> Any:
    """Time to the first token against k: medians with quartiles, a line for each arm and way of attaching."""
    figure, axes = new_axes()
    arms = list(dict.fromkeys(point.arm for point in points))
    for i, arm in enumerate(arms):
        for attached in ("concatenated", "compiled"):
            line = [p for p in points if p.arm == arm and p.attached in ("none", attached)]
            times = [p.first_token_ms for p in line]
            error = [[t.median - t.low for t in times], [t.high - t.median for t in times]]
            axes.errorbar(
                [p.k for p in line], [t.median for t in times], yerr=error, color=ATTACHED[attached],
                ls=STYLES[i % len(STYLES)], marker="o", ms=4, capsize=3,
                label=f"{attached}, {arm}" if len(arms) > 1 else attached,
            )  # fmt: skip
    first = points[0]
    axes.set(
        xlabel="prompt tokens k",
        ylabel="time to the first token, ms",
        title=f"Latency, batch {first.batch}, {first.length} text tokens (median, quartiles)",
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure
