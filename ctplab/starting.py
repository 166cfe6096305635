"""Ctrl-C while the libraries load: one line and exit code 130, not a traceback out of the middle of an import.

``ctplab/__init__.py`` calls this before it imports anything else. In a process that is not the command line, such as a
notebook, it does nothing.
"""

import os
import signal
import sys
import threading
from pathlib import Path

LINE = b"ctplab: interrupted; run the same command to go on\n"


def is_command() -> bool:
    """Whether this process is ``ctplab`` or ``python -m ctplab``."""
    by_module = sys.argv[:1] == ["-m"] and ["-m", "ctplab"] in [sys.orig_argv[i : i + 2] for i in range(1, 8)]
    return by_module or Path(sys.argv[0] if sys.argv else "").stem == "ctplab"


def leave_at_once(*_: object) -> None:
    """End the process. Nothing has begun yet, so nothing is lost."""
    os.write(2, LINE)
    os._exit(130)


def guard() -> None:
    """Until a command begins, an interrupt ends the process at once. A signal that the parent ignores stays ignored."""
    if not is_command() or threading.current_thread() is not threading.main_thread():
        return
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, leave_at_once)
