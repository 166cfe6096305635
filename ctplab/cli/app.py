"""``app``: the dashboard."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ctplab.cli.numbers import at_least
from ctplab.errors import InputError


def app(options: argparse.Namespace) -> None:
    """Load what is named and serve the page until Ctrl-C."""
    if sys.stderr.isatty():
        print("ctplab: the dashboard starts; its address follows", file=sys.stderr)
    try:
        from ctplab.app.server import launch  # pyright: ignore[reportMissingImports]  (not in every installation)
    except ImportError as error:
        missing = error.name or "ctplab.app"
        raise InputError(
            f"the dashboard needs {missing!r}: pip install 'ctplab[app]', or 'make app' in a checkout"
        ) from None
    launch(
        full=options.full,
        compressed=options.compressed,
        prompts=options.prompt,
        runs=options.runs,
        device=options.device,
        host=options.host,
        port=options.port,
        token=options.token,
        allow=options.allow,
    )


def register(commands: Any) -> None:
    """Add the command; ``python -m app`` takes the same options."""
    about = "the dashboard in a browser, on localhost"
    sub = commands.add_parser("app", help=about, description=about)
    sub.set_defaults(run=app, shared=False, parser=sub)
    sub.add_argument("--full", default="atlas", metavar="MODEL", help="the uncompressed model (default: atlas)")
    sub.add_argument("--compressed", action="append", default=[], metavar="MODEL", help="repeatable")
    sub.add_argument("--prompt", action="append", default=[], metavar="DIR", help="repeatable")
    sub.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where results are read and written")
    sub.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    sub.add_argument("--host", default="127.0.0.1", help="another address lets other machines in, who need a token")
    sub.add_argument("--token", metavar="TEXT", help="who has it may use the page (default: made for other hosts)")
    sub.add_argument(
        "--allow", action="append", default=[], type=Path, metavar="DIR",
        help="a folder whose models, prompts and texts the page may name; repeatable (always: --runs, and what is "
        "named here)",
    )  # fmt: skip
    sub.add_argument("--port", type=at_least(0, 65535), default=7860)
