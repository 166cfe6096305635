"""``ctplab``: one file a command. Exit codes: 0, 2 (bad input, one line), 130 (interrupted).

A command does its work through the public API (``import ctplab as ctp``). The rest of the library gives it what only a
terminal needs: tables, bars, run folders, the paper's numbers, and how a sweep is planned.
"""

import os
import signal
import sys

from ctplab import __version__, parallel
from ctplab.cli import (
    app,
    choose,
    compare,
    compress,
    cut,
    demo,
    export,
    generate,
    get,
    hard,
    import_,
    info,
    inspect,
    latency,
    learn,
    lens,
    memory,
    pace,
    recover,
    reproduce,
    score,
    sweep,
    transfer,
    tune,
    worth,
)
from ctplab.cli.faults import in_words, stoppable, telling
from ctplab.cli.parsing import Parser, in_flags
from ctplab.cli.shared import note
from ctplab.errors import InputError, Interrupted

COMMANDS = (
    demo, get, compress, info, learn, tune, hard, score, latency, recover, transfer, pace, memory, inspect, worth, cut,
    choose, lens, generate, compare, export, import_, reproduce, sweep, app,
)  # fmt: skip
"""In the order of ``ctplab --help``."""
INTERRUPTED = "interrupted; run the same command to go on"


def parser() -> Parser:
    """The parser of ``ctplab`` with every command and option."""
    whole = Parser(prog="ctplab", description="Compress a language model, and heal it with a soft prompt.")
    whole.add_argument("--version", action="version", version=f"ctplab {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.register(commands)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        with stoppable(), telling(), parallel.group() as device:
            return run_command(arguments, device)
    except KeyboardInterrupt:
        note(INTERRUPTED)
        return 130
    except Interrupted as error:  # every process that is left says so: the main one may be the one that ended
        print(f"ctplab: {error}", file=sys.stderr)
        return 130


def run_command(arguments: list[str] | None, device: str | None) -> int:
    """Run one command in this process or, on ``device``, as one of several; returns the exit code."""
    flags: dict[str, str] = {}
    try:
        options, extras = parser().parse_known_args(arguments)
        flags = options.parser.flags
        options.parser.check_known(extras)
        options.parser.check_named(options)
        if parallel.size() > 1 and not options.shared:
            raise InputError("this command runs in one process; several can share learn, compress and score")
        if parallel.left_alone():
            note("accelerate started one process only; for several, also on CPUs, give it --multi_gpu and not --cpu")
        options.device = device or options.device
        options.run(options)
        return 0
    except InputError as error:  # bad input is bad in every process
        note(in_flags(str(error), flags))
        return 2
    except KeyboardInterrupt:
        note(INTERRUPTED)
        return 130
    except BrokenPipeError:  # whoever read standard output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130
    except BaseException as error:
        told = in_words(error, flags)
        if told is None:
            raise
        note(told)
        return 2


def entry() -> None:
    """The ``ctplab`` script."""
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said and written; Python's own end would take the default
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
