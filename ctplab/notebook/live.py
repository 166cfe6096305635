"""The curve of learning, drawn in a notebook while it grows."""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

from ctplab.learning.learned import Step
from ctplab.show.learning import draw_curve

T = TypeVar("T")
SECONDS = 2.0  # between two drawings, each of which takes about a tenth of a second


def _line(total: int | None, label: str) -> Generator[None, None, None]:
    """Counts each ``send``, and says how far it is now and then; takes its line away when it is closed."""
    from IPython.display import display

    began = told = time.perf_counter()
    done, shown = 0, None
    try:
        yield
        while True:
            now, done = time.perf_counter(), done + 1
            if now - told > SECONDS:
                left = f" of {total}, {(now - began) / done * (total - done):.0f} s left" if total else ""
                text, told = {"text/plain": f"{label}: {done}{left}"}, now
                if shown is None:
                    shown = display(text, raw=True, display_id=True)
                else:
                    shown.update(text, raw=True)
            yield
    finally:
        if shown is not None:
            shown.update({"text/plain": ""}, raw=True)


def live_curve(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """A progress (see ``ctplab.progress``): one figure, redrawn in place, with the rate and the time left.

    Steps of learning are drawn; of everything else it says in a line how far it is. Both go when the work is done (the
    finished curve is in the saved prompt); a figure stays if learning was interrupted.
    """
    from IPython.display import display

    line = _line(total, label)
    next(line)
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
        else:
            line.send(None)
        yield item
    line.close()
    if shown is not None:
        shown.update({"text/plain": ""}, raw=True)
