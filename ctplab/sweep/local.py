"""Run cells one after the other in this process."""

from collections.abc import Generator, Sequence

from ctplab.progress import Progress, bar
from ctplab.sweep.steps import Job, Outcome, left_out, run_cell


def run_here(jobs: Sequence[Job], progress: Progress = bar) -> Generator[Outcome]:
    """Do the jobs in order and leave out those whose need failed. ``progress`` shows the work inside a cell."""
    failed = set()
    for job in jobs:
        outcome = left_out(job) if job.cell.needs in failed else run_cell(job, progress)
        if outcome.error:
            failed.add(job.cell)
        yield outcome
