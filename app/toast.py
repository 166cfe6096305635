"""Errors as toasts: one clear line, never a traceback on the page."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

import ctplab as ctp


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show bad input as a toast. An unexpected error is shown as one too; its traceback goes to the server's log."""
    try:
        yield
    except ctp.InputError as error:
        raise gr.Error(str(error), duration=12, print_exception=False) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        line = str(error).strip().split("\n")[0]
        raise gr.Error(f"{type(error).__name__}: {line[:200]}", duration=12, title="Unexpected error") from error
