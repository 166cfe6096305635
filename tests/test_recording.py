"""What may be recorded is told without a card: whatever makes the host wait is refused, in this thread only."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ctplab.recording import NeverWaiting, Recording

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
X = torch.arange(6.0).view(2, 3)
WAITS = {
    "a number": lambda: X.sum().item(),
    "a decision": lambda: bool((X > 2).any()),
    "indices": lambda: X.nonzero(),
    "rows by a mask": lambda: X[X[:, 0] > 1],
    "a write by a mask": lambda: X.clone().index_put_((X > 9,), torch.tensor(1.0)),
    "picked by a mask": lambda: X.masked_select(X > 1),
    "distinct values": lambda: X.unique(),
    "counts": lambda: X.long().flatten().bincount(),
    "equality": lambda: torch.equal(X, X + 1),
    "repeats": lambda: X.repeat_interleave(torch.tensor([1, 2]), 0),
    "another device": lambda: X.to("meta"),
}
GOES_ON = {
    "places": lambda: X[:, torch.tensor([0, 2])],
    "a write by places": lambda: X.clone().index_copy_(1, torch.tensor([0]), torch.ones(2, 1)),
    "a choice": lambda: torch.where(X > 2, X, 0.0),
    "a filling by a mask": lambda: X.clone().masked_fill_(X > 2, 1.0),
    "repeats of known length": lambda: X.repeat_interleave(torch.tensor([1, 2]), 0, output_size=3),
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


@CARD
def test_a_replay_reads_what_lies_in_the_old_tensors():
    card = torch.device("cuda")
    x, weights = torch.ones(4, device=card), torch.eye(4, device=card)
    recording = Recording(lambda: weights @ x, card)
    x.copy_(torch.arange(4.0))
    assert recording.replay().tolist() == [0, 1, 2, 3]


@CARD
def test_a_failed_recording_leaves_the_card_as_it_was():
    card = torch.device("cuda")
    x = torch.ones(4, device=card)
    for waits in (lambda: x * x.sum().item(), lambda: x * x.cpu().sum()):
        with pytest.raises(RuntimeError):
            Recording(waits, card)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert Recording(lambda: x + torch.randn(4, device=card), card).replay().shape == (4,)
