"""Keep freed memory in the process while large tensors come and go."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MIB = 2**20


@contextmanager
def kept() -> Iterator[None]:
    """Inside the block, glibc returns no freed memory to the system. At the end it returns all that is free.

    By default glibc returns every large chunk that is freed. The next one then costs a page fault per 4 KiB: several
    per cent of a compression's time. Does nothing if the C library is not glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)  # the largest value that glibc accepts; its own adaptation stops there too
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        libc.malloc_trim(0)
