"""Long jobs (compress, learn, ask many) run in threads of the server. They go on if a page is reloaded or closed.

A job belongs to the visitor who started it: only that one stops it, others may watch.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import ctplab as ctp
from ctplab.app.toast import in_page
from ctplab.app.turns import Turns

T = TypeVar("T")
EACH, ALL, AT_ONCE = 3, 16, 3
"""Unfinished jobs of one visitor and of all; jobs that run at once, each of another visitor's."""
KEPT = 200  # finished jobs that the server remembers


class Cancelled(Exception):
    """Somebody pressed Cancel."""


@dataclass
class Job:
    """What a page shows of a job. Written by the job's thread, read by any page."""

    id: int
    kind: str
    title: str
    turns: Turns = field(repr=False)
    owner: str = ""
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
    baselines: dict[str, float] = field(default_factory=dict)
    """NLL on the validation windows of the arms ``full`` and ``compressed``, in nats a token."""
    said: list[tuple[int, str]] = field(default_factory=list)
    """(step, the prompted model's answer to the watched question) of a learning job."""
    result: dict[str, Any] = field(default_factory=dict)
    cancel: Event = field(default_factory=Event, repr=False)

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def version(self) -> tuple[Any, ...]:
        """Changes whenever a page has something new to show."""
        return self.id, self.state, self.done, self.note, len(self.points)

    def record(self) -> dict[str, Any]:
        """Where a learning job is, as plain JSON for programs."""
        measured = [[step + 1, value] for step, _, value in list(self.points) if value is not None]
        told = {key: self.result[key] for key in ("names", "folder", "warnings") if key in self.result}
        return {"state": self.state, "done": self.done, "total": self.total, "note": self.note,
                "validation": measured, "baselines": self.baselines, **told}  # fmt: skip

    def progress(self, items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
        """A ctplab progress: counts, lets others use the device between two items, and ends once it is cancelled."""
        for item in self.counted(items, total=total, label=label):
            with self.turns.turn():
                yield item

    def counted(self, items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
        """As :meth:`progress`, for work that takes its turns itself."""
        self.done, self.total, self.note = 0, total or 0, label
        for item in items:
            if self.cancel.is_set():
                raise Cancelled
            yield item
            self.done += 1

    def html(self, watcher: str = "") -> str:
        """One line and a bar; the rate and the time left while it runs. ``watcher``: the visitor who looks."""
        words = {"queued": "waits for its turn", "running": "runs", "done": "is done"}.get(self.state, self.state)
        others = watcher and self.owner != watcher and self.active
        count = f"{self.done} of {self.total}" if self.total else ""
        facts = ["another visitor's" if others else "", words, count, self.note]
        passed, new = time.perf_counter() - self.began, self.done - self.first
        if self.state == "running" and new > 0:
            left = passed / new * (self.total - self.done)
            facts.append(f"{new / passed:.1f} a second, {left:.0f} s left")
        line = f"<strong>{escape(self.title)}</strong><span>{escape(' · '.join(fact for fact in facts if fact))}</span>"
        label = f"Progress of {escape(self.title, quote=True)}"
        bar = f'<progress max="{max(self.total, 1)}" value="{self.done}" aria-label="{label}"></progress>'
        return f'<div class="job" data-state="{self.state}"><div class="line">{line}</div>{bar}</div>'


class Jobs:
    """All jobs since the server began. Each visitor has one running at a time, in the order of asking."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._guard = turns, Lock()
        self._ids = itertools.count(1)
        self._all: list[Job] = []
        self._work: dict[int, Callable[[Job], None]] = {}

    def start(self, kind: str, title: str, work: Callable[[Job], None], owner: str = "") -> Job:
        """Queue ``work(job)``. Raises InputError if too many are unfinished."""
        with self._guard:
            active = [job for job in self._all if job.active]
            if sum(job.owner == owner for job in active) >= EACH:
                raise ctp.InputError(f"{EACH} of your jobs are unfinished: stop one, or let it finish")
            if len(active) >= ALL:
                raise ctp.InputError(f"{ALL} jobs are unfinished on this server: try again later")
            job = Job(next(self._ids), kind, title, self._turns, owner)
            self._all = [*self._all[-KEPT:], job] if not active else [*self._all, job]
            self._work[job.id] = work
        self._next()
        return job

    def refused(self, kind: str, title: str, reason: str, owner: str = "") -> Job:
        """A job that failed before it began, so that its panel shows why."""
        job = Job(next(self._ids), kind, title, self._turns, owner, state="failed", note=reason)
        with self._guard:
            self._all.append(job)
        return job

    def _next(self) -> None:
        """Start what may run now. Threads are daemons: Ctrl-C ends the server whatever they do."""
        with self._guard:
            running = {job.owner for job in self._all if job.state == "running"}
            for job in self._all:
                if job.state == "queued" and job.owner not in running and len(running) < AT_ONCE:
                    job.state, job.began = "running", time.perf_counter()
                    running.add(job.owner)
                    Thread(target=self._run, args=(job, self._work.pop(job.id)), daemon=True).start()

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            if job.cancel.is_set():
                raise Cancelled
            work(job)
            job.state = "done"
        except Cancelled:
            job.state, job.note = "cancelled", job.note or "before it began"
        except ctp.InputError as error:
            job.state, job.note = "failed", in_page(str(error))
        except MemoryError:
            job.state, job.note = "failed", "not enough memory: ask for less at a time"
        except Exception as error:  # a thread that dies silently would leave its page waiting
            said = str(error).splitlines()
            job.state, job.note = "failed", f"{type(error).__name__}: {said[0] if said else ''}"
        finally:
            self._next()

    def latest(self, kind: str, owner: str | None = None) -> Job | None:
        """The job of a kind that a page shows: ``owner``'s running one, else anybody's, else the newest."""
        those = [job for job in self._all if job.kind == kind]
        running = [job for job in those if job.state == "running"]
        mine = [job for job in running if job.owner == owner]
        return next(iter([*mine, *running, *reversed(those)]), None)

    def unfinished(self, kind: str) -> list[Job]:
        """Everybody's queued and running jobs of a kind."""
        return [job for job in self._all if job.kind == kind and job.active]

    def mine(self, kind: str, owner: str) -> Job:
        """The unfinished job of a kind that ``owner`` may stop. Raises InputError if there is none."""
        active = self.unfinished(kind)
        own = [job for job in active if job.owner == owner]
        if own:
            return own[0]
        if active:
            raise ctp.InputError("this was started by another visitor, who alone can stop it; you may watch")
        raise ctp.InputError("nothing of yours is running here")

    def done(self, kind: str, owner: str) -> list[Job]:
        """``owner``'s finished jobs of a kind, newest first."""
        return [job for job in reversed(self._all) if (job.kind, job.owner, job.state) == (kind, owner, "done")]

    def cancel_all(self) -> None:
        """Ask every job to end at its next step."""
        for job in list(self._all):
            job.cancel.set()
