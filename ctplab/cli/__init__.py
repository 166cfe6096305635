"""``ctplab``: subcommands over the public API. Exit codes: 0, 2 (bad input, one line), 130 (interrupted)."""

import sys

from ctplab import parallel
from ctplab.cli import (
    answer,
    app,
    exchange,
    hard,
    look,
    memory,
    models,
    prompts,
    recover,
    reproduce,
    score,
    study,
    sweep,
    transfer,
)
from ctplab.cli.shared import Parser, note
from ctplab.errors import InputError, Interrupted

WORK = (study, models, prompts, hard, score, recover, transfer, memory, look, answer, exchange, reproduce, sweep, app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        with parallel.group() as device:
            return run_command(arguments, device)
    except Interrupted as error:  # every process that is left says so: the main one may be the one that ended
        print(f"ctplab: {error}", file=sys.stderr)
        return 130


def run_command(arguments: list[str] | None, device: str | None) -> int:
    """Run one command in this process or, on ``device``, as one of several."""
    parser = Parser(prog="ctplab", description="Compress a language model, and heal it with a soft prompt.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in WORK:
        module.register(commands)
    try:
        options = parser.parse_args(arguments)
        if parallel.size() > 1 and not options.shared:
            raise InputError("this command runs in one process; several can share learn, compress and score")
        if parallel.left_alone():
            note("accelerate started one process only; for several, also on CPUs, give it --multi_gpu and not --cpu")
        options.device = device or options.device
        options.run(options)
        return 0
    except InputError as error:  # bad input is bad in every process
        note(str(error))
        return 2
    except KeyboardInterrupt:
        note("interrupted; run the same command to go on")
        return 130


def entry() -> None:
    """The ``ctplab`` script."""
    sys.exit(main())
