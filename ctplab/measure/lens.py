"""The lens: what every arm thinks of every token of one text.

Entry t of every list is about the prediction *of* token t from all that stands before it, in nats:

    surprisal   -log p_arm(x_t | prefix, x_0 .. x_{t-1})
    kl          KL(p_full || p_arm) over the vocabulary at that place

Every arm reads the same tokens, those that it reads when it is asked to go on (``text/reading.py``): a greedy answer is
the lens's first choice at every place. As everywhere in the lab, the first token is no target, so entry 0 (the start
token if there is one) is None and has no alternatives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ctplab.errors import InputError
from ctplab.models import Tokenizer
from ctplab.models.anatomy import check_ids, check_text, embeddings
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compiled
from ctplab.prompts.head import logits_after
from ctplab.text.reading import encode, start_of


@dataclass(frozen=True)
class ArmLens:
    """One arm's view of the text."""

    surprisal: list[float | None]
    kl: list[float | None] | None
    """None if no arm is called ``full``."""
    alternatives: list[list[tuple[str, float]]]
    """(token, probability) of the most likely tokens, most likely first."""


@dataclass(frozen=True)
class Lens:
    """The text and every arm's view of it."""

    tokens: list[str]
    ids: list[int]
    arms: dict[str, ArmLens]
    start: str = "none"
    """What stands between prefix and text: the start token, or ``none``."""


@dataclass(frozen=True)
class Change:
    """How much one token's surprisal differs between two arms."""

    position: int
    token: str
    nats: float
    """Positive: the first arm is more surprised than the second."""


def surprisal(logp: Tensor, ids: Tensor) -> Tensor:
    """-log p of tokens 1 .. T-1: ``logp`` (T, V) log-probabilities, ``ids`` (T,) -> (T-1,)."""
    return -logp[:-1].gather(1, ids[1:, None])[:, 0]


def kl_divergence(full: Tensor, arm: Tensor) -> Tensor:
    """KL(full || arm) at the places that predict tokens 1 .. T-1: two (T, V) log-probabilities -> (T-1,)."""
    return F.kl_div(arm[:-1], full[:-1], log_target=True, reduction="none").sum(1)


@torch.no_grad()
def _log_probabilities(arm: Arm, ids: list[int]) -> Tensor:
    """(T, V) fp32 log-probabilities, on the CPU. One text only, so they are of modest size."""
    row = torch.tensor([ids], device=embeddings(arm.model).device)
    check_ids(arm.model, row)
    logits = logits_after(arm.model, compiled(arm), row)[0]
    return logits.float().log_softmax(-1).cpu()


def lens(
    arms: list[Arm], tokenizer: Tokenizer, text: str, *, top: int = 10, start: str = "auto", raw: bool = True
) -> Lens:
    """Per-token surprisal of every arm, KL to the arm called ``full``, and the ``top`` alternatives everywhere.

    The text is read as it stands: if it is a rendered conversation, ``start`` must be ``none``. Without ``raw`` it is
    read as a user's turn in the tokenizer's chat template, up to where the answer begins. Raises InputError if the text
    has fewer than two tokens or is too long for a model, if two arms share a name, and if their vocabularies differ.
    """
    ids = encode(tokenizer, text, raw=raw, start=start) if text.strip() else []
    if len(ids) < 2:
        raise InputError("the lens needs a text of at least two tokens")
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise InputError("the lens needs at least one arm, and each arm a name of its own")
    for arm in arms:
        check_text(arm.model, max(each.prefix.k for each in arms), len(ids))
    logp = {arm.name: _log_probabilities(arm, ids) for arm in arms}
    if len({rows.shape[1] for rows in logp.values()}) > 1:
        raise InputError("these arms have vocabularies of different sizes: their predictions cannot be compared")
    target = torch.tensor(ids)
    views = {}
    for name, rows in logp.items():
        kl = None if "full" not in logp else [None, *kl_divergence(logp["full"], rows).clamp(min=0).tolist()]
        best = rows[:-1].topk(min(top, rows.shape[1]))
        places = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        alternatives = [
            [(tokenizer.decode([i]), p) for i, p in zip(row, probabilities, strict=True)]
            for row, probabilities in places
        ]
        views[name] = ArmLens([None, *surprisal(rows, target).tolist()], kl, [[], *alternatives])
    return Lens([tokenizer.decode([i]) for i in ids], ids, views, start_of(tokenizer, start, raw))


def changes(seen: Lens, first: str, second: str) -> list[Change]:
    """Surprisal of arm ``first`` minus that of arm ``second``, token by token, largest first.

    Raises InputError if the lens has no such arm.
    """
    for name in (first, second):
        if name not in seen.arms:
            raise InputError(f"the lens has no arm called {name!r}; it has {', '.join(seen.arms)}")
    pairs = zip(seen.arms[first].surprisal, seen.arms[second].surprisal, strict=True)
    found = [Change(t, seen.tokens[t], a - b) for t, (a, b) in enumerate(pairs) if a is not None and b is not None]
    return sorted(found, key=lambda change: -change.nats)


def hurt_and_helped(seen: Lens, n: int = 10, *, prompted: str = "soft") -> dict[str, list[Change]]:
    """``hurt``: the n tokens that compression made most surprising; ``helped``: the n that the prompt helped most.

    Needs the arms ``full`` and ``compressed``, and for ``helped`` the arm ``prompted``. Tokens that moved the other way
    are left out.
    """
    pairs = {"hurt": ("compressed", "full"), "helped": ("compressed", prompted)}
    return {name: [c for c in changes(seen, *pair)[:n] if c.nats > 0] for name, pair in pairs.items()}
