"""Whose turn it is on the device."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock


class Turns:
    """A lock that goes to whoever asked first, so that a long job and a question take turns on the device."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._waiting: deque[Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the device; others follow in the order in which they asked."""
        mine = Event()
        with self._guard:
            self._waiting.append(mine)
            if self._waiting[0] is mine:
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._guard:
                self._waiting.popleft()
                if self._waiting:
                    self._waiting[0].set()
