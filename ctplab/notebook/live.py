"""The curve of learning, drawn in a notebook while it grows."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

from ctplab.learning.loop import Step
from ctplab.show.learning import draw_curve

T = TypeVar("T")
SECONDS = 2.0  # between two drawings, each of which takes about a tenth of a second


def live_curve(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """A progress (see ``ctplab.progress``): one figure, redrawn in place, with the rate and the time left.

    It draws steps of learning and is silent about everything else. The figure goes when learning is done (the finished
    curve is in the saved prompt), and stays if learning was interrupted.
    """
    from IPython.display import display

    began = drawn = time.perf_counter()
    steps: list[dict] = []
    shown = None
    for item in items:
        if isinstance(item, Step):
            steps.append(asdict(item))
            now = time.perf_counter()
            if shown is None or now - drawn > SECONDS:
                rate, drawn = len(steps) / (now - began), now
                left = "" if total is None else f" of {total}, {(total - item.step - 1) / rate:.0f} s left"
                figure = draw_curve(steps)
                figure.axes[0].set_title(f"Learning: step {item.step + 1}{left}, {rate:.1f} steps/s")
                if all(step["validation"] is None for step in steps):
                    figure.axes[1].set_yticks([])  # nothing is measured yet
                if shown is None:
                    shown = display(figure, display_id=True)
                else:
                    shown.update(figure)
        yield item
    if shown is not None:
        shown.update({"text/plain": ""}, raw=True)
