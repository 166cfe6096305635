"""Options that are read, checked and told in the words of the command line."""

import argparse
import difflib
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from ctplab.errors import InputError

HINT = re.compile(r"(?<![\w/.'\"-])([a-z]\w*)=(?:True|'([^']*)')?(?=[\s,;:.)]|$)")
"""``force=True``, ``dtype='float32'`` or ``samples=``, as the library's errors name arguments; no part of a path."""


PLACES = ("MODEL", "DIR", "FILE")
"""What options that name a folder, a file or a model show as their value."""


class Parser(argparse.ArgumentParser):
    """A parser that treats bad options as bad input: it raises InputError."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see '{self.prog} --help')")

    def check_known(self, extras: Collection[str]) -> None:
        """Raise InputError if there are words that no option and no argument of this command takes."""
        if extras:
            known = [text for action in self._actions for text in action.option_strings]
            close = difflib.get_close_matches(next(iter(extras)).split("=")[0], known, n=1)
            self.error(f"unrecognized arguments: {' '.join(extras)}{f'; is it {close[0]}?' if close else ''}")

    def check_named(self, options: argparse.Namespace) -> None:
        """Raise InputError if an option that names a place is empty, as an unset variable of a shell is."""
        for action in self._actions:
            given = getattr(options, action.dest, None)
            place = action.metavar in PLACES or action.dest in ("model", "prompt")
            if place and "" in (given if isinstance(given, list) else [given]):
                self.error(f"{action.option_strings[-1] if action.option_strings else action.dest} is empty")

    def check_unused(self, options: argparse.Namespace, used: Collection[str], beside: str) -> None:
        """Raise InputError if an option was given that has no effect ``beside`` another: none but ``used`` has one."""
        for action in self._actions:
            given = getattr(options, action.dest, action.default)
            if action.option_strings and action.dest not in used and given != action.default:
                self.error(f"{action.option_strings[-1]} has no effect {beside}")

    @property
    def flags(self) -> dict[str, str]:
        """Python argument -> the option that sets it, such as ``seq_len`` -> ``--seq-len``."""
        options = [action for action in self._actions if action.option_strings and action.const is not False]
        return {action.dest: action.option_strings[-1] for action in options}


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """The library's ``message`` with the arguments in ``flags`` as the options of a command line.

    ``force=True`` becomes ``--force``, ``dtype='float32'`` becomes ``--dtype float32``, ``samples=`` becomes
    ``--samples``. A command does not have every argument that the library names: the others stay as they are.
    """

    def flag(hint: re.Match[str]) -> str:
        name, value = hint.groups()
        if name not in flags:
            return hint[0]
        return flags[name] if value is None else f"{flags[name]} {shlex.quote(value)}"

    return HINT.sub(flag, message)
