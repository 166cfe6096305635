"""A card's streams and graphs on a CPU: what torch and CUDA demand of a recording, and what a replay is.

A recording is a list of operations with the tensors that they read and wrote. What it computed is lost, because a card
computes nothing while it records. A replay runs the operations again and writes into the same tensors: it knows of no
Python, of no number that has changed meanwhile, and of no tensor that came later.

``Cards`` follows torch 2.11 (``old``) or 2.13: what a failed recording leaves behind, and what a graph takes along that
goes. Its rules are from torch's ``CUDAGraph.cpp``, ``CUDACachingAllocator.cpp`` and ``CublasHandlePool.cpp``.
"""

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ctplab import recording

POOL = 32  # streams that torch makes for a card
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select")


class Stream:
    def __init__(self, card, number):
        self.card, self.cuda_stream = card, 1000 * card + number

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass

    def __eq__(self, other):
        return self.cuda_stream == other.cuda_stream

    def __hash__(self):
        return self.cuda_stream


class Workspace:
    """What the library of matrix products needs on one stream."""

    freed = False


class Tape(TorchDispatchMode):
    """Writes down operations."""

    def __init__(self, cards):
        super().__init__()
        self.cards, self.lines = cards, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.cards.forbidden()
        if name in PRODUCTS:
            self.cards.multiply()
        out = func(*args, **kwargs)
        self.lines.append((func, args, kwargs, out))
        return out

    def forget(self) -> None:
        """What was computed while it was recorded is no number that anybody may use."""
        for _, args, kwargs, out in self.lines:
            before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for x in tree_leaves(out):
                fresh = isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in before
                if fresh and x.is_floating_point() and not x._is_zerotensor():
                    x.detach().fill_(torch.nan)

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, out in self.lines:
            writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
            again = func(*args, **kwargs)
            if writes or any(r.alias_info is not None for r in func._schema.returns):  # a view has no kernel
                continue
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.detach().copy_(new)


class Graph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, cards):
        self.cards, self.tape, self.stream, self.ended, self.uses = cards, None, None, False, []

    def replay(self):
        assert self.ended, "Called CUDAGraph::replay without a preceding successful capture."
        if self.cards.generator_waits:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        if any(workspace.freed for workspace in self.uses):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.stream.card == self.cards.holds_tensors:  # else nothing was recorded there
            self.tape.play()

    def __del__(self):
        if self.cards.capturing is not None:
            self.cards.broken = True
        if self.ended and not self.cards.old:
            self.cards.free_workspace(self.stream)


class Cards:
    """Stands in for ``torch.cuda`` and what the recordings ask of ``torch._C``. ``card``: where all tensors lie."""

    def __init__(self, monkeypatch, *, old=False, card=0):
        self.old, self.holds_tensors = old, card
        self.here, self.made, self.handles = 0, 0, 0
        self.now = {}
        self.underway, self.uses = [], {}
        self.workspaces: dict[int, Workspace] = {}
        self.capturing: Any = None
        self.broken = self.generator_waits = False
        self.default_capture_stream = None
        self.reserved = 0
        names = "Stream CUDAGraph graph stream device current_device current_stream default_stream set_stream"
        for name in [*names.split(), "graph_pool_handle", "memory_reserved", "empty_cache", "synchronize"]:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        for name, value in (("_rehearsing", {}), ("_spare", {}), ("_known", set()), ("_broken", [])):
            monkeypatch.setattr(recording, name, value)

    def Stream(self):
        self.made += 1
        return Stream(self.here, 1 + self.made % POOL)

    def CUDAGraph(self):
        return Graph(self)

    def current_device(self):
        return self.here

    def default_stream(self, device=None):
        return Stream(self.here, 0)

    def current_stream(self, device=None):
        return self.now.get(self.here) or self.default_stream()

    def set_stream(self, stream):
        self.here = stream.card
        self.now[stream.card] = stream

    def memory_reserved(self):
        self.reserved += 1000
        return self.reserved

    def graph_pool_handle(self):
        self.handles += 1
        return (0, self.handles)

    @contextmanager
    def device(self, device):
        before, self.here = self.here, self.holds_tensors
        try:
            yield
        finally:
            self.here = before

    @contextmanager
    def stream(self, stream):
        here, before = self.here, self.current_stream()
        self.set_stream(stream)
        try:
            yield
        finally:
            self.here = here
            self.set_stream(before)

    def synchronize(self, device=None):
        if self.capturing is not None:
            self.forbidden()

    def empty_cache(self):
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def forbidden(self):
        """Whatever waits while a stream records: the operation fails, and the recording with it."""
        self.broken = self.capturing is not None
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def multiply(self):
        stream = self.current_stream().cuda_stream
        used = self.workspaces.setdefault(stream, Workspace())
        if self.capturing is not None:
            self.capturing.uses.append(used)

    def free_workspace(self, stream):
        gone = self.workspaces.pop(stream.cuda_stream, None)
        if gone is not None:
            gone.freed = True

    def begin_allocate(self, pool):
        if pool in self.underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.underway.append(pool)
        self.uses[pool] = self.uses.get(pool, 0) + 1

    def end_allocate(self, card, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, card, pool):
        self.uses[pool] -= 1
        assert self.uses[pool] >= 0

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        """As ``torch.cuda.graph``: if recording fails, the stream stays."""
        if stream is None:  # one for all cards
            self.default_capture_stream = self.default_capture_stream or self.Stream()
            stream = self.default_capture_stream
        pool = self.graph_pool_handle() if pool is None else pool
        before = self.current_stream()
        self.synchronize()
        self.empty_cache()
        self.set_stream(stream)
        assert stream.cuda_stream % 1000, "CUDA graphs must be captured on a non-default stream."
        self.begin_allocate(pool)
        self.capturing, self.broken, self.generator_waits = graph, False, self.old
        graph.stream, graph.tape = stream, Tape(self)
        try:
            with graph.tape:
                yield
        finally:
            self.capturing = None
            if self.broken and self.old:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.end_allocate(stream.card, pool)
            if self.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.generator_waits, graph.ended = False, True
            graph.tape.forget()
            self.set_stream(before)
