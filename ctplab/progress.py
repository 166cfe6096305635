"""One small interface for progress: a bar in a terminal, silence in tests, the app's own bar in the app."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

from ctplab import parallel

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and shows how far it got, the rate and the time left."""

    def __call__(self, items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterable[T]: ...


def bar(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """A tqdm bar on standard error, shown by the main process only.

    If the last item has a ``note``, it stands after the bar.
    """
    hidden = not parallel.is_main()
    with tqdm(items, total=total, desc=label, leave=False, mininterval=0.2, disable=hidden) as shown:
        for item in shown:
            if note := getattr(item, "note", None):
                shown.set_postfix_str(note, refresh=False)
            yield item


def by_size(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """A bar for items that differ in cost: each item has a ``size`` in tokens, and ``total`` is their sum."""
    hidden = not parallel.is_main()
    unit: dict[str, Any] = {"unit": " tokens", "unit_scale": True, "smoothing": 0}
    with tqdm(total=total, desc=label, leave=False, disable=hidden, **unit) as shown:
        for item in items:
            shown.set_postfix_str(getattr(item, "note", ""), refresh=False)
            shown.update(getattr(item, "size", 1))
            yield item


def silent(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Shows nothing."""
    yield from items
