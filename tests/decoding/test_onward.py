"""What follows the first pass over a recorded step: the logits of the growing cache, for every family of models.

There is no card in most tests: a stand-in runs the function again on the tensors that a graph would read.
"""

import gc
import weakref
from contextlib import closing

import pytest
import torch
from conftest import FAMILIES, GROUPED, MORE_FAMILIES, SHAPE, any_tiny, from_config, tiny

import ctplab as ctp
from ctplab.decoding import onward
from ctplab.decoding.batched import greedy
from ctplab.decoding.fixed import FixedStep
from ctplab.decoding.inputs import Batch, behind_prefix, left_padded, positions
from ctplab.decoding.onward import Onward, places
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand
from ctplab.prompts.ways import NOISE
from ctplab.recording import NeverWaiting

K, NEW = 7, 24
ROUNDING = 1e-5
"""Of float64 logits, relative to the largest: some models keep norms, rotations and softmax in fp32."""
TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [100, 200, 300], [40, 41, 42, 43, 44]]
CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
FLOAT32 = ("MixtralConfig", "Qwen2MoeConfig", "GPTNeoConfig")  # no float64 products of experts; attention in fp32
NO_PREFIX = ("GPTNeoConfig",)  # their prefix stays rows
NOT_RECORDED = {"bloom": "the model takes no position_ids"}


class Replay:
    """Stands in for a card's recording. ``made`` counts; a recording that is wrong multiplies the logits by ``off``."""

    made, off = 0, 1.0

    def __init__(self, run, device, *, pool=None, warm_up=0):
        type(self).made += 1
        with NeverWaiting("cpu"):
            run()
        self.run = run  # which a recording does not keep

    def replay(self):
        return self.run() * self.off


@pytest.fixture
def recorded(monkeypatch):
    """Steps are recorded by the stand-in."""
    monkeypatch.setattr(onward, "_no_card", lambda device: None)
    monkeypatch.setattr(onward, "_room", lambda device: 2**30)
    monkeypatch.setattr(onward, "Recording", Replay)
    monkeypatch.setattr(Replay, "made", 0)
    monkeypatch.setattr(Replay, "off", 1.0)
    return Replay


def soft(model):
    return Arm("soft", model, prefix.random_rows(model, K))


@torch.no_grad()
def first_pass(arm, batch, new):
    """The cache of prefix and texts, the mask with places for answers, the width, and positions."""
    mask = behind_prefix(batch.mask, arm.prefix.k)
    width = mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(mask), new)], 1)
    where = positions(mask) if onward.takes(arm.model, "position_ids") else None
    more = {} if where is None else {"position_ids": where[:, arm.prefix.k : width]}
    cache = expand(arm.model, compiled(arm), len(mask))
    out = arm.model(input_ids=batch.ids, attention_mask=mask[:, :width], past_key_values=cache, use_cache=True, **more)
    return out.past_key_values, mask, width, where


def followed(arm, batch, new=NEW):
    """The logits (new, B, V) of scripted tokens after the texts."""
    said = torch.randint(3, 2000, (new, len(batch.ids), 1), generator=torch.Generator().manual_seed(0))
    with closing(Onward(arm.model, *first_pass(arm, batch, new))) as following:
        return torch.stack([following(tokens.to(batch.ids.device)).clone() for tokens in said])


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_fixed_cache_gives_the_logits_of_the_growing_one(family, monkeypatch, recorded):
    """Padded texts behind a prefix, in float64, token by token; and no pass asks the device."""
    model = any_tiny(family)
    model = model if family in FLOAT32 else model.double()
    arm = Arm("none", model, prefix.none(model)) if family in NO_PREFIX else soft(model)
    batch = left_padded(TEXTS, model, 0)
    found = followed(arm, batch)
    assert recorded.made == (family not in NOT_RECORDED) and onward.refused(model) is None
    monkeypatch.undo()
    wanted = followed(arm, batch)
    most = NOISE[torch.float32] if family in FLOAT32 else ROUNDING
    assert float((found - wanted).abs().max()) <= most * float(wanted.abs().max())
    assert len({tuple(row.argmax(-1).tolist()) for row in wanted}) > 1, "the test is blind"


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_answers_are_those_without_a_recording(kind, recorded, monkeypatch, tokenizer, front):
    """Both loops, on the embedded model: a padded batch, a stream by sampling, and early ends."""
    model, tok = ctp.load("atlas", device="cpu")
    arm = front(model, kind)
    batch = left_padded([[5, 60, 7, 8], [9, 100], [11, 12, 13]], model, 0)
    hot = ctp.Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=1)
    free = greedy(arm, batch, NEW).tolist()
    ends = [free[0][6], free[1][9], free[2][4]]

    def answers():
        streamed = "".join(ctp.stream(arm, tok, "The capital of", max_new_tokens=NEW, sampler=hot))
        stopped = "".join(ctp.stream(arm, tok, "The capital of", max_new_tokens=NEW, stop=" the"))
        concatenated = greedy(arm, batch, NEW, concatenate=True).tolist() if arm.prefix.k else []
        return greedy(arm, batch, NEW, ends=ends).tolist(), concatenated, streamed, stopped

    found = answers()
    assert recorded.made == 2 and onward.refused(model) is None  # one for each size of batch
    monkeypatch.undo()
    assert free == greedy(arm, batch, NEW).tolist() and found == answers()


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
