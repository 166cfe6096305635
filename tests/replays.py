"""A recording that is not there: it runs the function again, on the tensors that a card's graph would read.

``on_cards`` is stricter: the operations are recorded, and replayed without the function.
"""

from contextlib import closing

import torch
from conftest import tiny
from graphs import Cards

import ctplab as ctp
from ctplab.compression.linear import PackedLinear
from ctplab.decoding import kept, onward
from ctplab.decoding.inputs import behind_prefix, positions
from ctplab.decoding.onward import Onward
from ctplab.models.anatomy import embeddings
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled, expand
from ctplab.prompts.ways import HALF_NOISE, NOISE
from ctplab.recording import NeverWaiting

K, NEW = 7, 24
TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [100, 200, 250], [40, 41, 42, 43, 44]]


class Replay:
    """Stands in for a card's recording. ``made`` counts; a recording that is wrong multiplies the logits by ``off``."""

    made, off, bytes = 0, 1.0, 0

    def __init__(self, run, device, *, pool=None, warm_up=0):
        type(self).made += 1
        with NeverWaiting("cpu"):
            run()
        self.run = run  # which a recording does not keep

    def replay(self):
        return self.run() * self.off


def on_cards(monkeypatch, **how):
    """Steps are recorded for real from here on, on a stand-in for a card's graphs."""
    monkeypatch.setattr(onward, "_no_card", lambda device: None)
    monkeypatch.setattr(kept, "_room", lambda device: 2**30)
    return Cards(monkeypatch, **how)


def stand_in(monkeypatch):
    """Steps are recorded by the stand-in from here on."""
    monkeypatch.setattr(onward, "_no_card", lambda device: None)
    monkeypatch.setattr(kept, "_room", lambda device: 2**30)
    monkeypatch.setattr(kept, "Recording", Replay)
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
    said = torch.randint(
        3, len(embeddings(arm.model)), (new, len(batch.ids), 1), generator=torch.Generator().manual_seed(0)
    )
    with closing(Onward(arm.model, *first_pass(arm, batch, new))) as following:
        return torch.stack([following(tokens.to(batch.ids.device)).clone() for tokens in said])


def packed_model(dtype):
    model = tiny("llama")
    windows = torch.randint(3, 2000, (4, 24), generator=torch.Generator().manual_seed(0))
    small, report = ctp.compress(model, windows, ctp.CompressionSpec(bits=4), progress=silent)
    for name, parts in report.parts.items():
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, PackedLinear(parts, 4, None))
    return small.to(dtype)


def close(found, wanted):
    return float((found - wanted).abs().max()) <= NOISE.get(wanted.dtype, HALF_NOISE) * float(wanted.abs().max())
