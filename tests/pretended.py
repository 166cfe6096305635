"""A card that is not there: tensors in the CPU's memory whose storage is marked as lying on ``cuda:0``.

A mark is what a card would be: ``device`` says ``cuda:0``, what is computed from marked tensors is marked, an operation
on marked and unmarked ones raises as it does on a card, and ``numpy`` wants a copy on the CPU first. So a test finds
mixed devices on a machine without a card. It finds nothing about kernels, speed, streams or rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ctplab.compression.kernels import usable
from ctplab.models import loading

CARD = torch.device("cuda", 0)
ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
PRODUCT = getattr(ATEN.mm, "dtype", None)
INDEXING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default}


def getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


CALL: Any = {  # getters, as a mode of functions is told of them
    getter(name): answer for name, answer in (("device", CARD), ("is_cuda", True), ("is_cpu", False))
} | {Tensor.get_device: 0}


def marked(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on the pretended card."""
    with torch._C.DisableTorchFunction():
        try:
            return getattr(tensor.untyped_storage(), "marked", False)
        except (NotImplementedError, RuntimeError):  # it has no storage
            return False


def mark(tensor: Tensor, there: bool = True) -> Tensor:
    with torch._C.DisableTorchFunction():
        tensor.untyped_storage().marked = there  # type: ignore[attr-defined]
    return tensor


def is_card(device: Any) -> bool:
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda" and device.index:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device.type == "cuda"


class _Move(torch.autograd.Function):
    """A copy on the other device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool, dtype: torch.dtype) -> Tensor:
        ctx.back = marked(x), x.dtype
        with torch._C.DisableTorchFunction():
            return mark(x.detach().to(dtype, copy=True), there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return mark(grads[0].detach().to(ctx.back[1], copy=True), ctx.back[0]), None, None


class _Operations(TorchDispatchMode):
    """Refuses operations on mixed devices, and marks what comes of marked tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(map(marked, tensors))
        if there and func not in COPIES:
            indices = args[1] if func in INDEXING and marked(args[0]) else []  # a card takes a CPU's indices
            placed = [x for x in tensors if not any(x is i for i in indices)]
            if len({marked(x) for x in placed if marked(x) or x.ndim}) > 1:  # and a CPU's numbers
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} has cuda:0 and cpu")
        with torch._C.DisableTorchFunction():
            if func is PRODUCT:  # cards only: products of half precision in fp32
                func, args, kwargs = torch.matmul, (args[0].to(args[2]), args[1].to(args[2])), {}
            out = func(*args, **(kwargs or {}))
        if there and not (func in COPIES and not marked(args[0])):
            known = set(map(id, tensors))
            for x in tree_leaves(out):
                if isinstance(x, Tensor) and id(x) not in known:
                    mark(x)
        return out


class _Calls(TorchFunctionMode):
    """Answers where a tensor lies, and moves tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        x: Any = args[0] if args and isinstance(args[0], Tensor) else None
        if func in CALL:
            return CALL[func] if marked(x) else func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and marked(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.cpu or func is Tensor.cuda:
            return self._moved(x, func is Tensor.cuda, x.dtype)
        if func is Tensor.to:
            return self._to(x, *args[1:], **kwargs)
        device = kwargs.get("device")
        there = marked(x) if device is None and func is Tensor.new_tensor else device is not None and is_card(device)
        if there:
            kwargs["device"] = "cpu"
        generator = kwargs.get("generator")
        if generator is not None and there:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and (there or device is not None) and marked(out) != there:
            return self._moved(out, there, out.dtype)
        return out

    def _to(self, x: Tensor, *places: Any, device: Any = None, other: Any = None, dtype: Any = None, **how: Any) -> Any:
        flags = [a for a in places if isinstance(a, bool)]  # non_blocking, copy
        for a in (device, other, *(a for a in places if not isinstance(a, bool))):
            if isinstance(a, torch.dtype):
                dtype = a
            elif a is not None:
                device = a
        if device is None:
            return x.to(dtype or x.dtype, *flags, **how)
        if isinstance(device, Tensor):
            device, dtype = CARD if marked(device) else "cpu", device.dtype
        if is_card(device) != marked(x):
            return self._moved(x, is_card(device), dtype or x.dtype)
        return x.to("meta" if torch.device(device).type == "meta" else "cpu", dtype or x.dtype, *flags, **how)

    def _moved(self, x: Tensor, there: bool, dtype: torch.dtype) -> Tensor:
        if marked(x) == there and x.dtype == dtype:
            return x
        return _Move.apply(x, there, dtype)  # type: ignore[return-value]


def works() -> bool:
    """Whether this torch lets a card be pretended: its storages keep marks, and its modes see every call."""
    try:
        with _Calls(), _Operations():
            there = torch.zeros(2).to("cuda")
            return str((there + 1)[0].device) == "cuda:0" and there.cpu().device.type == "cpu"
    except (AttributeError, RuntimeError, AssertionError):
        return False


@contextmanager
def card(monkeypatch: Any) -> Iterator[None]:
    """Inside, models are loaded onto a card that is not there, in bfloat16; no kernel of ours runs on it."""

    class Stream:
        """A stream of the caller's own, as far as anybody asks: nothing is recorded."""

        def synchronize(self) -> None:
            pass

    def nothing_recorded(*args: Any) -> None:
        raise RuntimeError("a pretended card records nothing")

    answers = {
        "get_device_capability": lambda device=None: (9, 0),
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (2**36, 2**36),
        "graph_pool_handle": lambda: (0, 0),
        "current_device": nothing_recorded,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "synchronize": lambda device=None: None,
        "device": nullcontext,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(usable, "_works", lambda device: False)
    monkeypatch.setattr(loading, "default_device", lambda: "cuda")
    with _Calls(), _Operations():
        yield
