"""Freed memory is kept for a while: it must return to the system, and other operating systems must stay untouched."""

import platform
import sys
from pathlib import Path

import pytest
import torch

from ctplab.compression import heap


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's memory that is kept")
def test_memory_is_kept_inside_and_handed_back_after():
    before = resident()
    size = 24 * heap.MIB
    with heap.kept():
        tensors = [torch.ones(size, dtype=torch.uint8) for _ in range(8)]
        full = resident()
        del tensors
        assert resident() > full - size  # all eight are still there, give or take one
    assert resident() < before + 4 * size


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with heap.kept():
        pass
