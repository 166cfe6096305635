"""Recorded steps serve later answers, as long as they are right."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import zip_longest

import pytest
import torch
from conftest import tiny
from replays import K, first_pass, packed_model, soft, stand_in

import ctplab as ctp
from ctplab.compression.linear import PackedLinear
from ctplab.compression.obs import solve
from ctplab.compression.packing import pack
from ctplab.decoding import kept, onward
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import left_padded
from ctplab.decoding.kept import places
from ctplab.decoding.onward import Onward
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")


@pytest.fixture
def recorded(monkeypatch):
    return stand_in(monkeypatch)


def test_a_recording_serves_later_answers_and_is_not_shared(recorded, llama):
    arm, batch = soft(llama), left_padded([[5, 6, 7]], llama, 0)
    wanted = greedy(arm, batch, 40).tolist()
    assert greedy(arm, batch, 40).tolist() == greedy(arm, batch, 40).tolist() == wanted and recorded.made == 1
    assert greedy(arm, batch, 4).tolist()[0] == wanted[0][:4] and recorded.made == 1, "it serves short answers too"
    cache, *rest = first_pass(arm, batch, 40)
    with closing(Onward(llama, cache, *rest)) as following:
        following(torch.tensor([[9]]))
        assert recorded.made == 1
        assert greedy(arm, batch, 40).tolist() == wanted and recorded.made == 2, "it is in use"
    assert greedy(arm, batch, 40).tolist() == wanted and recorded.made == 2
    assert greedy(arm, left_padded([[5, 6, 7], [8, 9]], llama, 0), 40).shape == (2, 40) and recorded.made == 3


def test_whatever_changes_the_weights_ends_a_recording(recorded, llama):
    """Replaced, written to or moved; and what layers derive from them, which a recording reads as well."""
    arm, batch = soft(llama), left_padded([[5, 6, 7]], llama, 0)
    greedy(arm, batch, 20)
    layer = llama.model.layers[0]
    changes = {
        "written": lambda: layer.mlp.up_proj.weight.mul_(1.5),
        "replaced": lambda: setattr(layer.mlp, "down_proj", torch.nn.Linear(64, 32, bias=False)),
        "a tensor beside": lambda: setattr(layer, "kept_by_its_code", torch.ones(2)),
        "attends in another way": lambda: setattr(llama.config, "_attn_implementation", "eager"),
        "cast": lambda: llama.double(),
    }
    for count, (what, change) in enumerate(changes.items(), 2):
        with torch.no_grad():
            change()
        found = greedy(arm, batch, 20)
        assert recorded.made == count, what
        kept._kept.pop(llama)
        assert torch.equal(found, greedy(arm, batch, 20)), what
        greedy(arm, batch, 20)
        recorded.made = count


def test_what_packed_layers_derive_ends_a_recording_too(recorded, llama):
    """``model.to`` makes them derive it again, and leaves every tensor that the model knows of."""
    made = []

    class Layer(PackedLinear):
        def _for_kernels(self):  # as on a card
            if self._matrix is None:
                made.append(torch.ones(2))
                self._matrix = type("Matrix", (), {"tensors": tuple(made[-1:])}), []
            return None

        def forward(self, x):
            self._for_kernels()
            return super().forward(x)

    solved = solve(torch.randn(64, 32), torch.eye(32), ctp.CompressionSpec(bits=4))
    llama.model.layers[0].mlp.up_proj = Layer(pack(solved, 4), 4, None)
    arm, batch = soft(llama), left_padded([[5, 6, 7]], llama, 0)
    first = greedy(arm, batch, 20)
    assert any(t is made[0] for t in kept._read_by(llama))
    greedy(arm, batch, 20)
    assert recorded.made == 1 and len(made) == 1
    llama.to("cpu")
    assert torch.equal(greedy(arm, batch, 20), first) and len(made) == 2 and recorded.made == 2


def test_a_recording_keeps_no_model_alive(recorded, monkeypatch):
    class Once:
        """Keeps what a card's recording keeps: the tensors that came back."""

        bytes = 0

        def __init__(self, run, *args, **kwargs):
            self.result = run()

        def replay(self):
            return self.result

    monkeypatch.setattr(kept, "Recording", Once)
    monkeypatch.setattr(onward, "_same", lambda found, wanted: True)
    model = tiny("llama")
    greedy(soft(model), left_padded([[5, 6, 7]], model, 0), 20)
    (one,) = kept._kept[model]
    assert one.tried == onward.TRIED and not one.held
    gone, step = weakref.ref(model), weakref.ref(one.step)
    del model, one
    gc.collect()
    assert gone() is None and step() is None


def test_few_small_recordings_are_kept(recorded, llama, monkeypatch):
    arm = soft(llama)
    for length in (5, 60, 100, 150, 180):
        greedy(arm, left_padded([[7] * length], llama, 0), 20)
    assert [one.step.length for one in kept._kept[llama]] == [96, 128, 192, 224]
    monkeypatch.setattr(kept, "_room", lambda device: 0)
    greedy(arm, left_padded([[7] * 5], llama, 0), 20)
    assert not kept._kept[llama]


def test_an_answer_that_stops_gives_its_recording_back(recorded, llama, tokenizer):
    arm = soft(llama)
    whole = list(ctp.stream(arm, tokenizer, "a b c", max_new_tokens=30))
    pieces = ctp.stream(arm, tokenizer, "a b c", max_new_tokens=30)
    assert [next(pieces) for _ in range(8)] == whole[:8]
    assert kept._kept[llama] == []
    pieces.close()
    assert len(kept._kept[llama]) == 1
    assert list(ctp.stream(arm, tokenizer, "a b c", max_new_tokens=30)) == whole and recorded.made == 1


def test_an_infinity_is_not_left_for_the_next_answer(recorded, llama):
    arm, batch = soft(llama), left_padded([[5, 6, 7]], llama, 0)
    wanted = greedy(arm, batch, 20)
    (one,) = kept._kept[llama]
    for layer in one.step.cache.layers:
        layer.keys.fill_(torch.inf)
        layer.values.fill_(torch.nan)
    assert torch.equal(greedy(arm, batch, 20), wanted) and recorded.made == 1


def test_threads_do_not_share_a_recording(recorded, llama, tokenizer):
    arms = [Arm(str(i), llama, prefix.random_rows(llama, K, i)) for i in range(4)]
    alone = ["".join(ctp.stream(arm, tokenizer, "a b c", max_new_tokens=24)) for arm in arms]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda a: "".join(ctp.stream(a, tokenizer, "a b c", max_new_tokens=24)), arms * 3)) == (
            alone * 3
        )
    streams = [ctp.stream(arm, tokenizer, "a b c", max_new_tokens=24) for arm in arms]
    in_turn = zip(*zip_longest(*streams, fillvalue=""), strict=True)
    assert ["".join(pieces) for pieces in in_turn] == alone


def test_lengths_are_rounded_up_by_a_quarter_at_most():
    found = {places(n, None) for n in range(1, 5000)}
    assert len(found) < 30 and min(found) == 64
    for n in range(64, 5000):
        assert n <= places(n, None) <= 1.25 * n and places(n, None) % 16 == 0
    assert [places(n, 256) for n in (3, 200, 250, 256)] == [64, 224, 256, 256] and places(150, 150) == 150


@CARD
def test_a_card_goes_on_after_its_model_was_moved(tokenizer):
    """In the middle of an answer, from the weights that it was recorded with; the next answer records anew."""
    model = packed_model(torch.bfloat16).cuda()
    arm = soft(model)
    whole = list(ctp.stream(arm, tokenizer, "a b c", max_new_tokens=30))
    pieces = ctp.stream(arm, tokenizer, "a b c", max_new_tokens=30)
    found = [next(pieces) for _ in range(10)]
    model.cpu()
    filled = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]  # what was freed is overwritten
    assert found + list(pieces) == whole
    del filled
    model.cuda()
    assert list(ctp.stream(soft(model), tokenizer, "a b c", max_new_tokens=30)) == whole


@CARD
def test_a_card_serves_threads_at_once(tokenizer):
    model = tiny("llama").cuda()
    arms = [Arm(str(i), model, prefix.random_rows(model, K, i)) for i in range(4)]
    alone = ["".join(ctp.stream(arm, tokenizer, "a b c", max_new_tokens=24)) for arm in arms]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda a: "".join(ctp.stream(a, tokenizer, "a b c", max_new_tokens=24)), arms * 3))
    assert found == alone * 3 and kept.refused(model) is None
