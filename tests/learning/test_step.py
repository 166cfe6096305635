"""The gradient of a batch as a card records it: equal in every way of computing it, and it never asks the device."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from graphs import Cards

import ctplab as ctp
from ctplab.learning import fused, graph, pieces, readings, step
from ctplab.learning.keys_values import KeysValues, as_keys_and_values
from ctplab.learning.rows import Rows, learn_steps, start
from ctplab.learning.step import Gradient
from ctplab.learning.teacher import MemoryTeacher, TopKTeacher
from ctplab.learning.windows import Windows
from ctplab.models.anatomy import embed
from ctplab.prompts.head import halves
from ctplab.prompts.together import fits
from ctplab.recording import NeverWaiting

SPEC = ctp.PromptSpec(tokens=5, steps=8, batch=4, warmup=2, evaluate_every=4, validation_windows=4)
CPU = torch.device("cpu")
KERNELS = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where Triton's kernels run in tests: on a card as compiled, else in the interpreter."""


def few(split):
    """Its first 24 windows."""
    return replace(split, stream=split.stream[: 24 * split.seq_len])


def made(model, web, spec=SPEC, teacher=None, kv=False):
    """The gradient of a new prompt: rows, or keys and values."""
    rows = start(model, spec).initial
    learnable = KeysValues(as_keys_and_values(model, rows, "kv"), model) if kv else Rows(rows, model)
    for p in learnable.parameters.values():
        p.grad = torch.zeros_like(p)
    return Gradient.of(learnable, halves(model), Windows.of(few(web.train), model.device), spec, teacher)


def run(gradient, numbers):
    loss = gradient(numbers, numbers.numel() * (gradient.text.ids.shape[1] - 1))
    return loss, torch.cat([p.grad.flatten() for p in gradient.learnable.parameters.values()])


def test_one_long_row_is_the_plain_concatenation(model, web):
    """Every family: in one row if it takes one, else in two passes, in float64."""
    model = model.double()
    gradient = made(model, web)
    E, ids = gradient.learnable.parameters["E"], gradient.text.ids[:3]
    loss, found = run(gradient, torch.arange(3))
    rows = E.detach().double().requires_grad_(True)
    joined = torch.cat([rows.expand(3, -1, -1), embed(model, ids)], 1)
    logits = model(inputs_embeds=joined, use_cache=False).logits[:, len(E) : -1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)  # transformers keeps norms and rotations in fp32
    torch.testing.assert_close(found, rows.grad.float().flatten(), rtol=1e-3, atol=1e-6)


def test_which_models_take_one_long_row(llama):
    assert fits(halves(llama), 5, 4, 20)
    assert not fits(halves(tiny("bloom")), 5, 4, 20)  # brings its own attention
    from conftest import GROUPED, SHAPE, from_config
    from transformers import MistralConfig

    narrow = from_config(MistralConfig(**SHAPE | GROUPED, sliding_window=32))
    assert fits(halves(narrow), 2, 1, 20) and not fits(halves(narrow), 5, 4, 20)  # 85 rows in a window of 32


@pytest.mark.parametrize("kind", ["rows", "keys and values", "teacher", "cached teacher", "pieces"])
def test_a_step_never_asks_the_device(kind, llama, web):
    ids = torch.arange(8).expand(24, 47, 8)
    kept = TopKTeacher(torch.full(ids.shape, -3.0), ids, 2048, few(web.train).fingerprint)
    teachers = {"teacher": lambda: MemoryTeacher(tiny("llama")), "cached teacher": lambda: kept}
    teacher = teachers[kind]() if kind in teachers else None
    spec = replace(SPEC, kl=0.5 if teacher else 0.0, accumulate=2 if kind == "pieces" else 1)
    gradient = made(llama, web, spec, teacher, kv=kind == "keys and values")
    expected = run(gradient, torch.arange(4))
    with NeverWaiting(CPU.type):
        found = run(gradient, torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_losses_read_later_are_the_same_curve(llama, web, monkeypatch):
    expected = list(learn_steps(llama, web.train, web.validation, SPEC))
    monkeypatch.setattr(readings, "_patient", lambda device: True)
    monkeypatch.setattr(readings, "READ_EVERY", 1e9)  # at validations only
    found = list(learn_steps(llama, web.train, web.validation, SPEC))
    assert [(s.step, s.loss, s.lr, s.validation) for s in found] == [
        (s.step, s.loss, s.lr, s.validation) for s in expected
    ]


def test_a_loss_that_is_not_finite_is_found_later(llama, web, monkeypatch):
    monkeypatch.setattr(readings, "_patient", lambda device: True)
    monkeypatch.setattr(readings, "READ_EVERY", 1e9)
    result = start(llama, SPEC)
    steps = learn_steps(llama, web.train, web.validation, SPEC, result=result)
    seen = [next(steps) for _ in range(4)]
    kept = result.prefix.rows.clone()
    llama.model.norm.weight[0] = float("nan")
    seen += list(steps)
    assert [s.step for s in seen] == [0, 1, 2, 3] and "not finite at step 4" in result.stopped
    assert torch.equal(result.prefix.rows, kept)


def test_a_step_that_cannot_be_recorded_runs_as_it_is(llama, web, monkeypatch):
    def fails(*args):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    gradient = made(llama, web)
    monkeypatch.setattr(graph, "obstacle", lambda gradient: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(graph, "Graphed", fails)
    steps = graph.Steps([gradient])
    assert steps.obstacle is None
    loss = steps(0, torch.arange(4), 4)
    assert "recording failed: operation not permitted" in steps.obstacle
    assert torch.equal(loss, gradient(torch.arange(4), 4))


@pytest.mark.parametrize(("factor", "told"), [(1.0, None), (1.1, "a replay gives other numbers"), (float("nan"), "")])
def test_a_recording_is_tried_before_it_is_used(factor, told, llama, web, monkeypatch):
    """A stand-in for a card's graph, which is right or scales the gradient."""
    gradient = made(llama, web)

    class Replay:
        def __init__(self, run, numbers, device, pool):
            self.run = run

        def __call__(self, numbers, n_targets):
            loss = self.run(numbers, n_targets)
            for p in gradient.learnable.parameters.values():
                p.grad.mul_(factor)
            return loss

    monkeypatch.setattr(graph, "obstacle", lambda gradient: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(graph, "Graphed", Replay)
    steps = graph.Steps([gradient])
    loss = steps(0, torch.arange(20, 24), 4)
    found = torch.cat([p.grad.flatten() for p in gradient.learnable.parameters.values()])
    assert (steps.obstacle is None) if told is None else told in steps.obstacle
    expected = run(gradient, torch.arange(20, 24))
    n = gradient.text.ids.shape[1] - 1  # run counts all targets
    torch.testing.assert_close(loss, expected[0] * n)
    torch.testing.assert_close(found, expected[1] * n)


@pytest.mark.parametrize("kind", ["rows", "keys and values", "teacher", "cached teacher", "recomputed"])
def test_a_graph_of_a_step_is_the_step(kind, llama, web, monkeypatch):
    """Its operations alone, forward and backward, on other windows and other values of what is learned."""
    ids = torch.arange(8).expand(24, 47, 8)
    top = TopKTeacher(torch.full(ids.shape, -3.0), ids, 2048, few(web.train).fingerprint)
    teachers = {"teacher": lambda: MemoryTeacher(tiny("llama")), "cached teacher": lambda: top}
    teacher = teachers[kind]() if kind in teachers else None
    spec = replace(SPEC, kl=0.5 if teacher else 0.0, accumulate=2 if kind == "rows" else 1)
    model = ctp.recompute(llama) if kind == "recomputed" else llama
    gradient = made(model, web, spec, teacher, kv=kind == "keys and values")
    cards = Cards(monkeypatch)
    monkeypatch.setattr(graph, "obstacle", lambda gradient: None)
    steps = graph.Steps([gradient])
    for numbers in (torch.arange(2), torch.arange(10, 12)):
        for p in gradient.learnable.parameters.values():
            p.detach().mul_(0.9)
        n = numbers.numel() * (gradient.text.ids.shape[1] - 1)
        loss = steps(0, numbers, n)
        found = torch.cat([p.grad.flatten() for p in gradient.learnable.parameters.values()])
        expected = run(gradient, numbers)
        assert steps.obstacle is None
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(found, expected[1])
    assert cards.made == 2, "a stream for rehearsals, and one for the recording"


@pytest.mark.parametrize(
    ("old", "error"), [(True, AssertionError()), (False, torch.OutOfMemoryError("no memory\nmore")), (True, None)]
)
def test_a_model_that_cannot_be_recorded_leaves_the_others_recorded(old, error, llama, web, monkeypatch):
    """Whatever it raises, whether or not it says why; None: it waits as no operation tells."""
    gradients = [made(model, web) for model in (llama, tiny("llama"), tiny("llama"))]
    cards = Cards(monkeypatch, old=old)
    monkeypatch.setattr(graph, "obstacle", lambda gradient: None)

    def fails(*args):
        if cards.capturing is not None:
            if error is not None:
                raise error
            cards.forbidden()

    gradients[1].cut.model.model.layers[1].register_forward_pre_hook(fails)
    steps = graph.Steps(gradients)
    numbers, n = torch.arange(2), 2 * (gradients[0].text.ids.shape[1] - 1)
    for _ in range(2):
        for turn, gradient in enumerate(gradients):
            expected = run(gradient, numbers)
            found = steps(turn, numbers, n)
            torch.testing.assert_close(found, expected[0])
    assert torch.equal(numbers, torch.arange(2))
    assert [why is None for why in steps.obstacles] == [True, False, True] and len(steps._graphs) == 2
    told = "AssertionError" if isinstance(error, AssertionError) else "no memory" if error else "CUDA error"
    assert steps.obstacle.startswith(f"recording failed: {told}")


def test_what_a_card_does_not_record(llama, web):
    gradient = made(llama, web)
    assert graph.obstacle(gradient) == "there is no card"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("kind", ["rows", "keys and values", "masks", "teacher", "pieces"])
def test_a_recorded_step_is_the_step(kind, web):
    """On a card: the same kernels on the same numbers, but for sums that a card adds in no fixed order."""
    model, card = tiny("llama").cuda(), torch.device("cuda")
    full = tiny("llama").cuda()
    full.lm_head.weight.mul_(2)
    spec = replace(SPEC, batch=8, kl=0.5 if kind == "teacher" else 0.0, accumulate=2 if kind == "pieces" else 1)
    rows = start(model, spec).initial
    learnable = KeysValues(as_keys_and_values(model, rows, "kv"), model) if kind[0] == "k" else Rows(rows, model)
    text = Windows.of(few(web.train), card)
    if kind == "masks":
        text = Windows(text.ids, torch.rand(text.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    for p in learnable.parameters.values():
        p.grad = torch.zeros_like(p)
    teacher = MemoryTeacher(full) if kind == "teacher" else None
    gradient = Gradient.of(learnable, halves(model), text, spec, teacher)
    steps = graph.Steps([gradient])
    for numbers in (torch.arange(8), torch.arange(8, 16)):
        n_targets, found = text.targets_of(numbers), []
        for way in (lambda *args: steps(0, *args), gradient):
            loss = way(numbers, n_targets)
            found.append((float(loss), [p.grad.clone() for p in learnable.parameters.values()]))
        assert steps.obstacle is None
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
        for mine, expected in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("one_row", [True, False])
def test_fused_layers_give_the_models_gradient(one_row, llama, web):
    pytest.importorskip("triton")
    gradient = replace(made(llama.to(KERNELS), web), one_row=one_row, fused=None)
    expected = run(gradient, torch.arange(2))
    found = fused.find(llama)
    assert {type(module).__name__ for module, _ in found} == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}
    loss, grad = run(replace(gradient, fused=fused.Fused(found)), torch.arange(2))
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)  # fp32, other orders of the same products
    torch.testing.assert_close(grad, expected[1], rtol=1e-3, atol=1e-6)
    assert not any("forward" in vars(module) for module in llama.modules())


def test_layers_of_other_kinds_stay(web):
    """No RMSNorm; one that multiplies by 1 + weight, and GELU; queries with norms of their own."""
    from conftest import any_tiny

    kinds = {
        family: {type(module).__name__ for module, _ in fused.find(any_tiny(family).to(KERNELS))} for family in OTHERS
    }
    assert kinds == OTHERS


OTHERS = {"OPTConfig": set(), "GemmaConfig": {"GemmaAttention"}, "Qwen3Config": {"Qwen3RMSNorm", "Qwen3MLP"}}


@pytest.mark.parametrize("taught", [False, True])
def test_weighing_all_positions_is_picking_out_the_targets(taught, llama, web, monkeypatch):
    """Windows with masks: the loss and gradient of a card's step, in Triton's interpreter."""
    pytest.importorskip("triton")
    spec = replace(SPEC, kl=0.5 if taught else 0.0, hidden=0.3 if taught else 0.0)
    full = tiny("llama").to(KERNELS)
    full.lm_head.weight.mul_(2)
    gradient = made(llama.to(KERNELS), web, spec, MemoryTeacher(full) if taught else None)
    masks = torch.rand(gradient.text.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    gradient = replace(gradient, text=Windows(gradient.text.ids, masks), masks=None)
    expected = run(gradient, torch.arange(3))
    monkeypatch.setattr(step, "usable", lambda device: True)
    with NeverWaiting(KERNELS.type):
        found = run(replace(gradient, masks=masks.to(KERNELS)), torch.arange(3))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)  # sums in another order
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-6)


def test_a_batch_passes_in_pieces(llama, web):
    gradient = made(llama, web)
    expected, found = (run(replace(gradient, pieces=n), torch.arange(5)) for n in (1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert [pieces.pieces_on_card(10**9, *size) for size in ((1, 8192), (4, 1024), (16, 512))] == [1, 2, 2]
    assert pieces.pieces_on_card(10**8, 16, 512) == 1  # 3 of 8 TFLOP


def test_chunks_of_logits_follow_a_cards_memory(monkeypatch):
    card = torch.device("cuda")
    for free, expected in ((80e9, 1 << 26), (2e9, 1 << 24), (1e6, 1 << 22)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), int(free)))
        assert pieces.chunk_on(card) == expected
        assert expected == pieces.CHUNK or expected * pieces.BYTES <= free / pieces.SHARE
    assert pieces.chunk_on(CPU) == pieces.CHUNK


@pytest.mark.parametrize("masked", [False, True])
def test_targets_are_counted_without_the_device(masked):
    ids = torch.arange(40).view(5, 8)
    text = Windows(ids, ids % 3 == 0 if masked else None)
    numbers = torch.tensor([4, 0, 2])
    assert text.targets_of(numbers) == text.take(numbers).targets
