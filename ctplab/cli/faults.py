"""What can go wrong around a command: too little memory, a disk, a signal, a closed pipe. Each is one line."""

import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from ctplab.cli.shared import note
from ctplab.disk import LOG

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory", "bad_alloc")
"""What torch, CUDA and the C library say in exceptions that are no MemoryError."""
SMALLER = ("batch", "seq_len", "windows", "samples", "tokens", "top", "max_new_tokens")
"""Arguments that take less memory if they are smaller."""


def in_words(error: BaseException, flags: Mapping[str, str]) -> str | None:
    """One line about an error of the machine, with what would help; None if ``error`` is none, but a bug of ours.

    ``flags``: the options of the command, by the names of their arguments.
    """
    if _is_memory(error):
        said = " ".join(str(error).split())
        asked = f" ({said if len(said) <= 160 else said[:157] + '...'})" if said else ""
        smaller = [flags[name] for name in SMALLER if name in flags]
        help = f"smaller {', '.join(smaller)}, " if smaller else ""
        return f"out of memory{asked}; try {help}{'--packed, ' if 'packed' in flags else ''}a smaller model or text"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}"
    if type(error).__name__ == "PanicException":  # Rust's, in the tokenizers library: it is no Exception
        return f"a file is damaged: {' '.join(str(error).split())[:160]}"
    return None


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does. A signal that the parent ignores stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Notes(logging.Handler):
    """Lines of the library on standard error, as the command line writes its own."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def telling() -> Iterator[None]:
    """Inside, the library's lines are the command line's, and no character is too much for standard output."""
    with suppress(AttributeError, ValueError):  # a test or a notebook may have put something else in its place
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    handler = _Notes()
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
