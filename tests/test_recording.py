"""What may be recorded is told without a card: whatever makes the host wait is refused, in this thread only.

What recordings ask of torch is tried on a stand-in for its streams and graphs (``graphs``), as it is in two versions.
"""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from graphs import POOL, Cards, Stream

from ctplab import recording
from ctplab.recording import NeverWaiting, Recording

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
X = torch.arange(6.0).view(2, 3)
ONE, FIRST, PLACES, TIMES = torch.tensor(1.0), torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([1, 2])
WAITS = {
    "a number": lambda: X.sum().item(),
    "a decision": lambda: bool((X > 2).any()),
    "indices": lambda: X.nonzero(),
    "rows by a mask": lambda: X[X[:, 0] > 1],
    "a write by a mask": lambda: X.clone().index_put_((X > 9,), ONE),
    "picked by a mask": lambda: X.masked_select(X > 1),
    "distinct values": lambda: X.unique(),
    "counts": lambda: X.long().flatten().bincount(),
    "equality": lambda: torch.equal(X, X + 1),
    "repeats": lambda: X.repeat_interleave(TIMES, 0),
    "another device": lambda: X.to("meta"),
    "a number of the host's": lambda: X * torch.tensor(2.0),
}
GOES_ON = {
    "places": lambda: X[:, PLACES],
    "a write by places": lambda: X.clone().index_copy_(1, FIRST, torch.ones(2, 1)),
    "a choice": lambda: torch.where(X > 2, X, 0.0),
    "a filling by a mask": lambda: X.clone().masked_fill_(X > 2, 1.0),
    "no numbers at all": lambda: torch.tensor([], dtype=X.dtype),
    "repeats of known length": lambda: X.repeat_interleave(TIMES, 0, output_size=3),
    "another type": lambda: X.to(torch.bfloat16).max(-1),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_refused(what):
    with pytest.raises(RuntimeError, match="makes the host wait"), NeverWaiting("cpu"):
        WAITS[what]()
    WAITS[what]()


@pytest.mark.parametrize("what", GOES_ON)
def test_what_goes_on_is_not(what):
    with NeverWaiting("cpu"):
        GOES_ON[what]()


def test_other_devices_and_other_threads_may_wait():
    with NeverWaiting("cuda"):
        assert X.sum().item() == 15
    with NeverWaiting("cpu"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(X.sum().item).result() == 15


CPU = torch.device("cpu")
VERSIONS = pytest.mark.parametrize("old", [True, False], ids=["torch-2.11", "torch-2.13"])


def product(x, weights=None):
    """A recording of a matrix product, which needs memory of the library's own."""
    weights = torch.eye(3) if weights is None else weights
    return Recording(lambda: x @ weights, CPU)


@VERSIONS
@pytest.mark.parametrize("card", [0, 1])
def test_a_replay_computes_what_its_tensors_hold_now(old, card, monkeypatch):
    Cards(monkeypatch, old=old, card=card)
    x, weights = torch.zeros(2, 3), torch.eye(3)
    one = product(x, weights)
    other = Recording(lambda: (x * 2).T.contiguous().add_(1), CPU)
    x.copy_(X)
    assert torch.equal(one.replay(), X) and torch.equal(other.replay(), X.T * 2 + 1)
    weights.mul_(3)
    assert torch.equal(one.replay(), 3 * X) and one.bytes > 0


@VERSIONS
def test_a_recording_that_goes_takes_nothing_from_the_others(old, monkeypatch):
    Cards(monkeypatch, old=old)
    x = X.clone()
    first, second, third = (product(x) for _ in range(3))
    del second
    assert torch.equal(first.replay(), X)
    product(x)
    assert torch.equal(first.replay(), X) and torch.equal(third.replay(), X)


@VERSIONS
def test_a_card_has_room_for_so_many_recordings(old, monkeypatch):
    cards = Cards(monkeypatch, old=old)
    x = X.clone()
    kept = [product(x) for _ in range(POOL - 1)]  # one stream is for rehearsals
    with pytest.raises(torch.OutOfMemoryError, match="streams"):
        product(x)
    kept.pop(3)
    kept.append(product(x))
    assert all(torch.equal(one.replay(), X) for one in kept)
    for _ in range(100):
        kept.pop(5)
        kept.append(product(x))
    assert len(cards.workspaces) <= POOL


def wait(cards):
    """What NeverWaiting does not see, and what torch does not see either."""
    if cards.capturing is not None:
        cards.forbidden()


@VERSIONS
@pytest.mark.parametrize("how", ["waits", "raises", "interrupted"])
def test_a_recording_that_fails_leaves_the_card_as_it_was(how, old, monkeypatch):
    cards = Cards(monkeypatch, old=old)
    x, pool = X.clone(), (0, 77)
    before = product(x)
    shared = Recording(lambda: x * 2, CPU, pool=pool)
    held = cards.uses[pool]
    error = {"raises": ValueError("no"), "interrupted": KeyboardInterrupt()}.get(how)

    def fails():
        y = x * 3
        if error is None:
            wait(cards)
        elif cards.capturing is not None:
            raise error
        return y

    with pytest.raises(RuntimeError if error is None else type(error)):
        Recording(fails, CPU, pool=pool)
    assert cards.current_stream() == cards.default_stream() and cards.here == 0
    cards.empty_cache()
    assert cards.uses[pool] >= held, "the pool is still there for the recording that succeeded"
    x.add_(1)
    assert torch.equal(before.replay(), X + 1) and torch.equal(shared.replay(), 2 * X + 2)
    assert torch.equal(Recording(lambda: x * 3, CPU).replay(), 3 * X + 3)
    assert gc.isenabled()


def test_what_a_rehearsal_has_begun_is_waited_for_if_it_fails(monkeypatch):
    """Its kernels may still write to what the caller goes on with."""
    cards, waited = Cards(monkeypatch), []
    monkeypatch.setattr(Stream, "wait_stream", lambda self, other: waited.append((self, other)))
    with pytest.raises(RuntimeError, match="makes the host wait"):
        Recording(lambda: X.sum().item(), CPU)
    (aside, began), (after, ended) = waited
    assert began == after == cards.default_stream() == cards.current_stream() and ended == aside


def test_no_garbage_is_collected_during_a_recording(monkeypatch):
    """A graph that is freed then breaks it."""
    cards, seen = Cards(monkeypatch), []

    def run():
        seen.append((cards.capturing is not None, gc.isenabled()))
        return X * 2

    Recording(run, CPU)
    assert (True, False) in seen and (False, True) in seen and gc.isenabled()


@CARD
def test_a_replay_reads_what_lies_in_the_old_tensors():
    card = torch.device("cuda")
    x, weights = torch.ones(4, device=card), torch.eye(4, device=card)
    recording = Recording(lambda: weights @ x, card)
    x.copy_(torch.arange(4.0))
    assert recording.replay().tolist() == [0, 1, 2, 3]


@CARD
@pytest.mark.parametrize("how", ["asks", "copies", "waits"])
def test_a_failed_recording_leaves_the_card_as_it_was(how):
    """The first two are refused before torch records; the third one fails while it does."""
    card = torch.device("cuda")
    x, weights = torch.ones(4, device=card), torch.eye(4, device=card)
    before = Recording(lambda: weights @ x, card)
    waits = {"asks": lambda: x.sum().item(), "copies": lambda: x.cpu().sum().to(card), "waits": torch.cuda.synchronize}

    def fails():
        waits[how]()
        return x * 2

    with pytest.raises(RuntimeError):
        Recording(fails, card)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    assert Recording(lambda: x + torch.randn(4, device=card), card).replay().shape == (4,)
    assert torch.randn(4, device=card).isfinite().all()
    x.copy_(torch.arange(4.0))
    assert before.replay().tolist() == [0, 1, 2, 3]


@CARD
def test_recordings_of_a_card_outlive_each_other():
    card = torch.device("cuda")
    x = torch.ones(64, 256, device=card, dtype=torch.bfloat16)
    weights = torch.eye(256, device=card, dtype=torch.bfloat16)
    kept = [Recording(lambda: x @ weights, card) for _ in range(4)]
    for _ in range(40):
        kept.pop(0)
        torch.cuda.empty_cache()
        kept.append(Recording(lambda: x @ weights, card))
        assert all(torch.equal(one.replay(), x) for one in kept)
    assert len(recording._known) <= POOL


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_a_second_card_records_too():
    for card in (torch.device("cuda", 0), torch.device("cuda", 1)):
        x = torch.ones(4, device=card)
        made = Recording(lambda x=x: x * 2, card)
        x.copy_(torch.arange(4.0))
        assert made.replay().tolist() == [0, 2, 4, 6]
