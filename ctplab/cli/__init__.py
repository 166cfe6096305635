"""``ctplab``: subcommands over the public API. Exit codes: 0, 2 (bad input, one line), 130 (interrupted)."""

import sys

from ctplab.cli import (
    answer,
    app,
    exchange,
    hard,
    look,
    models,
    prompts,
    recover,
    reproduce,
    score,
    study,
    sweep,
    transfer,
)
from ctplab.cli.shared import Parser
from ctplab.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = Parser(prog="ctplab", description="Compress a language model, and heal it with a soft prompt.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    modules = (study, models, prompts, hard, score, recover, transfer, look, answer, exchange, reproduce, sweep, app)
    for module in modules:
        module.register(commands)
    try:
        options = parser.parse_args(arguments)
        options.run(options)
        return 0
    except InputError as error:
        print(f"ctplab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctplab: interrupted; run the same command to go on", file=sys.stderr)
        return 130


def entry() -> None:
    """The ``ctplab`` script."""
    sys.exit(main())
