"""Compute the Hessians of a block's groups in turn, while the calibration windows pass through the block.

Either all Hessians come from the dense block's activations, or each comes from the outputs of the linear layers
compressed before it (true-sequential). The caller puts a group's new weights in place before it asks for the next
group. At the end the windows have passed the compressed block.

Two batches, a and b, pass through a block with the groups qkv, o, gate-up and down. Time runs to the right. A name
between bars is a group that the caller solves.

    two passes      a b to the input of down   | qkv | o | gate-up | down |   a b again, through the compressed block
    one pass        a b to qkv | qkv | a b on to o | o | a b on to gate-up | gate-up | a b on to down | down | a b on

With one pass, a batch stops in the middle of the model's own forward code and waits there. A greenlet makes this
possible: it is a function that can hand over control at any point and resume there later.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress

from torch import Tensor, nn

from ctplab.compression.arithmetic import Arithmetic
from ctplab.compression.capture import Flow, Grouping, Stop, Watch
from ctplab.compression.hessian import Hessian
from ctplab.models.anatomy import weight_matrix

Group = tuple[str, ...]
Stages = Generator[tuple[Group, Hessian], None, None]
Empty = Callable[[Group], Hessian]


def staged(
    flow: Flow,
    index: int,
    block: nn.Module,
    order: Grouping,
    arithmetic: Arithmetic,
    *,
    true_sequential: bool,
    advance: bool,
) -> Stages:
    """Yield every group of ``order`` with its Hessian, whose products a CPU computes in ``arithmetic``.

    ``advance``: put the compressed block's outputs in ``flow``.
    """

    def empty(group: Group) -> Hessian:
        matrix = weight_matrix(block, group[0])
        return Hessian(matrix.shape[1], matrix.device, arithmetic)

    if true_sequential and order.stoppable:
        yield from _paused(flow, index, block, order, empty, advance)
        return
    for stage in [(group,) for group in order.groups] if true_sequential else [order.groups]:
        yield from _together(flow, index, block, order, empty, stage)
    if advance:
        flow.advance(index, block)


def _together(
    flow: Flow, index: int, block: nn.Module, order: Grouping, empty: Empty, stage: Sequence[Group]
) -> Stages:
    """Yield the Hessians of several groups, all from one pass, which ends at the last group's input if it may."""
    hessians = {group[0]: empty(group) for group in stage}
    inputs: dict[str, list[Tensor]] = {}
    last = stage[-1][0]

    def seen(name: str, x: Tensor) -> None:
        if name in hessians:
            inputs.setdefault(name, []).append(x if order.inputs_kept else x.clone())
            if name == last and order.stoppable:
                raise Stop

    with Watch(block, seen).on():
        for batch in flow.batches:
            for i in batch:
                with suppress(Stop):
                    flow.run(i, index, block)
            for name, parts in inputs.items():
                hessians[name].add(*parts)
            inputs.clear()
    for group in stage:
        yield group, hessians.pop(group[0])


def _paused(flow: Flow, index: int, block: nn.Module, order: Grouping, empty: Empty, advance: bool) -> Stages:
    """Run one pass for all groups. Each batch waits at a group's input until the group's new weights are in place.

    A batch's pass is a greenlet, so nothing before the group is computed twice. The price is memory: the paused frames
    of all batches keep their tensors. A batch that skips a group (an expert, say) waits at the next one that it uses.
    """
    from greenlet import GreenletExit, getcurrent, greenlet  # the other ways work without it

    open_groups = {group[0] for group in order.groups}

    def seen(name: str, x: Tensor) -> None:
        if name in open_groups:
            scheduler = getcurrent().parent
            assert scheduler is not None
            scheduler.switch((name, x))

    passes = [greenlet(lambda i=i: flow.step(i, index, block)) for i in range(len(flow.hidden))]
    with Watch(block, seen).on():
        try:
            at = [one.switch() for one in passes]  # the group's name and its input; None at the end
            for group in order.groups:
                hessian = empty(group)
                here = [i for i, reached in enumerate(at) if reached and reached[0] == group[0]]
                for batch in flow.batches:
                    if parts := [at[i][1] for i in batch if i in here]:
                        hessian.add(*parts)
                yield group, hessian
                open_groups.remove(group[0])
                if open_groups or advance:
                    for i in here:
                        at[i] = passes[i].switch()
        finally:
            for one in passes:
                one.throw(GreenletExit)
