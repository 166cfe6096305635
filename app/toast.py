"""Errors as toasts: one clear line, never a traceback on the page."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

import ctplab as ctp

WORDS = (
    (r"use a sequence length of at most 0\b", "choose a shorter prompt or a model with a longer context"),
    (r"\b[Ss]equence length\b", "'Tokens a window'"),
    (r"\bport=|\bseed=|\bdtype='\w+'|\bdevice='\w+'|\bforce=True", "the server's options"),
    (r"\bsamples=", "'Windows'"),
    (r"\bseq_len=", "'Tokens a window'"),
    (r"\bmax_new_tokens\b", "'Longest answer'"),
    (r"\blr=", "'Learning rate'"),
)
"""What the library's messages call a setting, and the control of the page that sets it."""


def in_page(message: str) -> str:
    """A message of the library in the words of the page's controls."""
    for pattern, control in WORDS:
        message = re.sub(pattern, control, message)
    return message


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show bad input as a toast. An unexpected error is shown as one too; its traceback goes to the server's log."""
    try:
        yield
    except ctp.InputError as error:
        raise gr.Error(in_page(str(error)), duration=12, print_exception=False) from None
    except MemoryError:
        raise gr.Error("Not enough memory for that: ask for less.", duration=12, print_exception=False) from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = str(error).strip().split("\n")[0]
        raise gr.Error(f"{type(error).__name__}: {line[:200]}", duration=12, title="Unexpected error") from error
