"""Tables of prompts on weights they never saw. Formats numbers; computes none."""

from collections.abc import Sequence
from dataclasses import astuple

from ctplab.measure.pace import Pace
from ctplab.measure.transfer import TransferCell
from ctplab.show.tables import table


def gaps_table(cells: Sequence[TransferCell]) -> str:
    """A transfer matrix of one corpus, a line a cell: the change, the share of the gap, the distance of the weights."""
    rows = []
    for cell in cells:
        if cell.refused:
            numbers = ["refused", "-", "-", "-"]
        else:
            change = "-" if cell.change is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*astuple(cell.change))
            closed = "-" if cell.recovery is None else cell.recovery.percent
            numbers = [f"{cell.ppl:.2f}", change, closed, str(cell.distance or "-")]
        rows.append([cell.target, f"{cell.source} *" if cell.diagonal else cell.source, *numbers])
    header = ["target", "source (* learned on this target)", "perplexity", "change [95%]", "gap closed [95%]"]
    refused = [f"{cell.source} on {cell.target}: {cell.refused}" for cell in cells if cell.refused]
    return "\n".join([table([*header, "weights apart by"], rows), *refused])


def pace_table(paces: Sequence[Pace], shares: Sequence[float]) -> str:
    """Steps of each prompt until it had closed each share of the gap."""
    rows = []
    for pace in paces:
        reached = [pace.steps_to(share) for share in shares]
        rows.append([pace.name, *("never" if n is None else str(n) for n in reached), f"{100 * pace.best:.0f}%"])
    return table(["steps until", *(f"{100 * share:g}%" for share in shares), "best"], rows)
