"""Freed memory stays with the process while large tensors come and go."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MIB = 2**20


@contextmanager
def kept() -> Iterator[None]:
    """Inside, glibc hands nothing back to the system; at the end it hands back all that is free.

    By itself it returns every large block that is freed, and the next one costs a page fault every 4 KiB: several
    per cent of a compression's time. Does nothing where the C library is another one.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)  # the largest that it takes, and where it gets to by itself
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        libc.malloc_trim(0)
