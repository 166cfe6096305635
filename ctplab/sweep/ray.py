"""Run cells on a Ray cluster. Ray places them, waits for their needs, and repeats those whose worker was lost.

All machines must see the runs, models and texts under the same paths, and must have the same ctplab installed.
"""

import logging
import os
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ctplab.errors import InputError
from ctplab.sweep.cells import Cell
from ctplab.sweep.steps import Job, Outcome, failed, left_out, run_cell

RETRIES = 3
REACH_SECONDS = 5
#: Environment variables that locate texts and models. Workers get their values from this process.
ENVIRONMENT = ("CTPLAB_DATA", "CTPLAB_CACHE", "HF_HOME", "HF_HUB_OFFLINE")
#: With "0" Ray listens on 127.0.0.1 only, which is its default outside Linux. Otherwise the network can reach it.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at ``address``: ``host:port``, ``auto`` (the cluster on this machine) or ``local``.

    ``local`` starts a cluster on this machine for this sweep only. Raises InputError without a cluster or without Ray.
    """
    _prepare(address)
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed: pip install 'ctplab[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    given = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if given:
        options["runtime_env"] = {"env_vars": given}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address, **options)
    except Exception as error:  # a dozen types, depending on the fault
        said = str(error).strip().split("\n")[0]
        token = "" if "RAY_AUTH_MODE" in os.environ else " (RAY_AUTH_MODE=token where it asks for a token)"
        raise InputError(f"cannot join the Ray cluster {address!r}: {said}{token}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _prepare(address: str) -> None:
    """Set what Ray reads at import, and check that ``address`` answers, because Ray itself would try for minutes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" or address.startswith(("127.0.0.1:", "localhost:")):
        os.environ.setdefault(LOOPBACK, "0")
    if address != "local":
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    if address not in ("local", "auto"):
        _reach(address)


def _reach(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"a Ray cluster is at auto, local or host:port (of the head node), not {address!r}")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None


def slots() -> int:
    """Number of cells that run at once: one per GPU, or per core without a GPU. Raises InputError without cores."""
    import ray

    found = ray.cluster_resources()
    if found.get("CPU", 0) < 1:
        raise InputError("the Ray cluster has no cores for cells; add a node with 'ray start --address=...'")
    return int(found.get("GPU") or found["CPU"])


def _task(job: Job, need: Outcome | None) -> Outcome:
    return left_out(job) if need is not None and need.error else run_cell(job)


def run_on_ray(jobs: Sequence[Job]) -> Generator[Outcome]:
    """Do the jobs on the cluster that this process is connected to; yields outcomes as they come."""
    import ray
    from ray.exceptions import RayError

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task)
    refs: dict[Cell, Any] = {}
    for job in jobs:
        need = refs.get(job.cell.needs) if job.cell.needs else None
        refs[job.cell] = task.options(name=job.cell.name).remote(job, need)
    waiting = {refs[job.cell]: job for job in jobs}
    try:
        with redirect_stdout(sys.stderr):  # Ray reports lost workers there
            while waiting:
                (ref, *_), _ = ray.wait(list(waiting), num_returns=1)
                job = waiting.pop(ref)
                try:
                    outcome = ray.get(ref)
                except RayError as error:  # its worker, or that of its need, was lost repeatedly
                    outcome = failed(job, error)
                yield outcome
    finally:
        for ref in waiting:
            ray.cancel(ref)
