"""What a colour means, on paper and on the dashboard. The arms have theirs from the table ``prompts.arms.KINDS``.

The others differ from every arm's, and can be read on white and on near-black.
"""

from collections.abc import Iterable
from itertools import cycle

from ctplab.prompts.arms import COLOURS

GREY = "#7c8798"
"""Whatever is no arm, and what stands in the background."""
PURPLE, OLIVE, BROWN = "#AA4499", "#999933", "#8C564B"

HELPS, HURTS = COLOURS["soft"], COLOURS["compressed"]
"""A prompt lowers the NLL, or raises it."""
ATTACHED = {"none": GREY, "concatenated": PURPLE, "compiled": OLIVE}
"""How a prompt stands in front of a request (``measure.latency``)."""
ROWS = {"soft": COLOURS["soft"], "init": COLOURS["init"], "real": BROWN, "random": COLOURS["random"]}
"""Sets of rows whose nearest tokens are compared (``inspect.similarity``)."""
ROW_NAMES = {"soft": "learned rows", "init": "untrained rows", "real": "real tokens", "random": "random directions"}


def colour(name: str) -> str:
    """The arm's colour; grey for what is no arm."""
    return COLOURS.get(name, GREY)


def distinct(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name of one figure: the arm's; those that are no arms take grey and three more in turn."""
    others = cycle((GREY, PURPLE, OLIVE, BROWN))
    return {name: COLOURS[name] if name in COLOURS else next(others) for name in names}
