"""Long jobs (compress, learn) run in a thread of the server. They go on if a page is reloaded or closed."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from threading import Event
from typing import Any, TypeVar

import ctplab as ctp
from ctplab.app.turns import Turns

T = TypeVar("T")


class Cancelled(Exception):
    """Somebody pressed Cancel."""


@dataclass
class Job:
    """What a page shows of a job. Written by the job's thread, read by any page."""

    id: int
    kind: str
    title: str
    turns: Turns = field(repr=False)
    state: str = "queued"
    """queued, running, done, cancelled or failed."""
    done: int = 0
    total: int = 0
    note: str = ""
    began: float = 0.0
    first: int = 0
    """The step at which a resumed job began: what was done before does not count for the rate."""
    points: list[tuple[int, float, float | None]] = field(default_factory=list)
    """(step, loss, validation) of a learning job."""
    result: dict[str, Any] = field(default_factory=dict)
    cancel: Event = field(default_factory=Event, repr=False)

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def version(self) -> tuple[Any, ...]:
        """Changes whenever a page has something new to show."""
        return self.id, self.state, self.done, self.note, len(self.points)

    def progress(self, items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
        """A ctplab progress: counts, lets others use the device between two items, and ends once it is cancelled."""
        self.done, self.total, self.note = 0, total or 0, label
        for item in items:
            if self.cancel.is_set():
                raise Cancelled
            with self.turns.turn():
                yield item
            self.done += 1

    def html(self) -> str:
        """One line and a bar; the rate and the time left while it runs."""
        words = {"queued": "waits for its turn", "running": "runs", "done": "is done"}.get(self.state, self.state)
        facts = [words, f"{self.done} of {self.total}" if self.total else "", self.note]
        passed, new = time.perf_counter() - self.began, self.done - self.first
        if self.state == "running" and new > 0:
            left = passed / new * (self.total - self.done)
            facts.append(f"{new / passed:.1f} a second, {left:.0f} s left")
        line = f"<strong>{escape(self.title)}</strong><span>{escape(' · '.join(fact for fact in facts if fact))}</span>"
        label = f"Progress of {escape(self.title, quote=True)}"
        bar = f'<progress max="{max(self.total, 1)}" value="{self.done}" aria-label="{label}"></progress>'
        return f'<div class="job" data-state="{self.state}"><div class="line">{line}</div>{bar}</div>'


class Jobs:
    """All jobs since the server began; one runs at a time, in the order of asking."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._ids = itertools.count(1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ctplab-job")
        self._all: list[Job] = []

    def start(self, kind: str, title: str, work: Callable[[Job], None]) -> Job:
        """Queue ``work(job)``."""
        job = Job(next(self._ids), kind, title, self._turns)
        self._all.append(job)
        self._worker.submit(self._run, job, work)
        return job

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        job.state, job.began = "running", time.perf_counter()
        try:
            if job.cancel.is_set():
                raise Cancelled
            work(job)
            job.state = "done"
        except Cancelled:
            job.state, job.note = "cancelled", job.note or "before it began"
        except ctp.InputError as error:
            job.state, job.note = "failed", str(error)
        except Exception as error:  # a thread that dies silently would leave its page waiting
            job.state, job.note = (
                "failed",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )

    def latest(self, kind: str) -> Job | None:
        """The newest job of a kind that is not waiting behind a running one."""
        mine = [job for job in self._all if job.kind == kind]
        running = [job for job in mine if job.state == "running"]
        return running[0] if running else (mine[-1] if mine else None)

    def waiting(self, kind: str) -> int:
        """Jobs of a kind that have not begun."""
        return sum(job.kind == kind and job.state == "queued" for job in self._all)
