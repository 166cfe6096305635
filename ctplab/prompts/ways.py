"""What a model can be trusted with, found by trying it on a few tokens: no list of names says so.

A wrong answer here would be a wrong number later, with no sign of it. So before a model is used, it reads 12 tokens in
every way that the lab would use, and each way must give the logits of the plainest one, ``model(input_ids)``:

    causal      a later token does not move an earlier one's logits; a model that fails is refused
    maskless    the causal attention of ``attention.py`` stands in for the model's own
    compiled    a prefix's rows can be kept as keys and values; else they are concatenated with every text
    rows        embeddings can stand in front of a text's embeddings; else the model takes no prompts
    cached      the model's own cache goes on token by token; else every new token reads the whole text again
    padded      padding on the left changes nothing; else texts are answered one by one

Other shapes add in another order, and deep or badly compressed models amplify what that changes: in bfloat16 a right
way may be a fifth away from the plain one on some text. So in half precision, what the plain way differs from itself
by, if it reads one token less, is allowed to the others as well. A wrong way is wrong on every text, so each way has
three texts to be right on.

The answer depends on model code and configuration. It is kept with the model's fingerprint in the cache, so it costs
nothing later.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.models import Model
from ctplab.models.anatomy import context_length, embed, embeddings
from ctplab.models.checks import kept_answer
from ctplab.prompts.attention import prefix_attention, takes_switch
from ctplab.prompts.cache import Behind, Recorder, keeps_all, keeps_keys_and_values

K, N = 5, 7  # prefix rows and text tokens that are tried
TEXTS = 3
NOISE = {torch.float64: 1e-9, torch.float32: 3e-4}
"""Distance (see :func:`apart`) that rounding explains in any model: other orders of summation."""
HALF_NOISE = 0.05
AGAIN = 3
"""Another way may be so many times as far from the plain one as that is from itself in another shape."""
MOST = 0.2
"""And never further. If one prefix token of five was left out, the logits of SmolLM2 moved by 0.27 or more on each of 8
texts, and so did those of copies of 2 to 4 bits, or 70% sparse."""


@dataclass(frozen=True)
class Ways:
    """What a model can be trusted with; see the module."""

    causal: bool
    maskless: bool
    compiled: bool
    rows: bool
    cached: bool
    padded: bool


_lock = RLock()
_known: WeakKeyDictionary[Model, tuple[str, Ways]] = WeakKeyDictionary()


def ways(model: Model) -> Ways:
    """Find what ``model`` can be trusted with, at its first use. Raises InputError if it is not causal."""
    with _lock:
        state = _state(model)
        before = _known.get(model)
        if before is None or before[0] != state:
            before = state, Ways(**kept_answer(model, f"ways {state}", lambda: asdict(_try(model))))
            _known[model] = before
    found = before[1]
    if not found.causal:
        raise InputError(
            f"{type(model).__name__} lets a token see later ones: it is no causal language model, and what it says "
            "about the next token means nothing"
        )
    return found


def takes(model: Model, argument: str) -> bool:
    """Whether the model's forward pass has an argument of that name."""
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(inside.forward).parameters


def last_only(model: Model) -> dict[str, Any]:
    """The argument that asks for the last token's logits only, if the model has it."""
    return {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}


def _state(model: Model) -> str:
    """Cheap to compute; changes if the model is moved, cast, or attends in another way."""
    table = embeddings(model)
    adapters = sorted(getattr(model, "peft_config", {}))
    return f"{table.dtype} {table.device} {takes_switch(model)} {adapters}"


def apart(plain: Tensor, other: Tensor) -> float:
    """The distance of two tensors (..., n) at the worst position, relative to the first, whatever is added to a row."""
    if plain.numel() == 0:
        return 0.0
    plain, other = (x if x.dtype == torch.float64 else x.float() for x in (plain, other))
    plain, other = (x - x.mean(-1, keepdim=True) for x in (plain, other))
    size = plain.norm(dim=-1).clamp(min=torch.finfo(plain.dtype).tiny)
    return float(((other - plain).norm(dim=-1) / size).max())


def allowed(dtype: torch.dtype, noise: float = 0.0) -> float:
    """The distance that still counts as the same, if two shapes of the plain way are ``noise`` apart.

    In whole precision rounding explains no more than :data:`NOISE`: what is farther apart there is another number.
    """
    return NOISE[dtype] if dtype in NOISE else max(HALF_NOISE, min(AGAIN * noise, MOST))


@torch.no_grad()
def _try(model: Model) -> Ways:
    """Try every way, on more texts if one does not show that all are right."""
    found: dict[str, bool] = dict.fromkeys(
        ("causal", "rows", "compiled", "maskless", "behind", "cached", "padded"), False
    )
    with _quiet(model):
        for number in range(TEXTS):
            found |= {name: True for name, right in _right(model, text(model, number)).items() if right}
            if all(found.values()):
                break
    behind, compiled = found.pop("behind"), found["rows"] and found["compiled"]
    return Ways(**{**found, "compiled": compiled, "maskless": found["maskless"] and (behind or not compiled)})


def text(model: Model, number: int) -> Tensor:
    """Ids (1, K + N) of any tokens, fewer if the model's context is shorter."""
    table = embeddings(model)
    ids = (torch.arange(K + N) * (7 + 4 * number) + 3 + number) % len(table)
    return ids[None, : context_length(model) or K + N].to(table.device)


def _right(model: Model, ids: Tensor) -> dict[str, bool]:
    """Whether each way gives the plain one's logits on this text. Raises InputError if those are not finite."""
    plain = _logits(model, input_ids=ids)
    if not plain.isfinite().all():
        raise InputError(f"{type(model).__name__} gives NaN or infinite logits in {plain.dtype}; try dtype='float32'")
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 11) % len(embeddings(model))
    causal = apart(plain[:, :-1], _logits(model, input_ids=changed)[:, :-1]) <= allowed(plain.dtype)
    noise = apart(plain[:, :-1], _logits(model, input_ids=ids[:, :-1])) if causal else 0.0

    def same(part: Tensor, run: Callable[[], Tensor]) -> bool:
        try:
            other = run()
        except Exception:  # a model can fail here in any way: then it cannot be used so
            return False
        return other.shape == part.shape and apart(part, other) <= allowed(plain.dtype, noise)

    rows = same(plain, lambda: _logits(model, inputs_embeds=embed(model, ids)))
    switched, cached = takes_switch(model), keeps_all(model)
    cached = cached and same(plain[:, -2:], lambda: _step_by_step(model, ids, rows))
    return {
        "causal": causal,
        "rows": rows,
        "compiled": keeps_keys_and_values(model) and same(plain[:, K:], lambda: _behind(model, ids)),
        "maskless": switched and same(plain, lambda: _switched(model, ids, False)),
        "behind": switched and same(plain[:, K:], lambda: _switched(model, ids, True)),
        "cached": cached,
        "padded": cached and all(same(plain[:, -1], lambda n=n: _padded(model, ids, n)) for n in (0, K)),
    }


@contextmanager
def _quiet(model: Model) -> Iterator[None]:
    """Inside, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _logits(model: Model, **inputs: Any) -> Tensor:
    return model.forward(**inputs, use_cache=False).logits  # forward: hooks of others need not see the tries


def _behind(model: Model, ids: Tensor) -> Tensor:
    """Logits of the text's tokens behind compiled rows."""
    recorder = Recorder(config=model.config)
    inputs: dict[str, Any] = {"inputs_embeds": embed(model, ids[:, :K]), "past_key_values": recorder, "use_cache": True}
    out = model.forward(**inputs, **last_only(model))
    kv = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    if any(keys is None for keys, _ in kv):
        raise TypeError("the cache has layers that keep nothing")
    mask = torch.ones_like(ids)
    cache = Behind(kv, model.config)
    return model.forward(input_ids=ids[:, K:], attention_mask=mask, past_key_values=cache, use_cache=True).logits


def _switched(model: Model, ids: Tensor, behind: bool) -> Tensor:
    with prefix_attention(model):
        return _behind(model, ids) if behind else _logits(model, input_ids=ids, attention_mask=torch.ones_like(ids))


def _step_by_step(model: Model, ids: Tensor, rows: bool) -> Tensor:
    """Logits of the last two tokens, each from the cache of those before; the first pass is of rows, if they work."""
    first = {"inputs_embeds": embed(model, ids[:, :-2])} if rows else {"input_ids": ids[:, :-2]}
    mask = torch.ones_like(ids)
    out = model.forward(**first, attention_mask=mask[:, :-2], use_cache=True, **last_only(model))
    steps = []
    for place in (-2, -1):
        token, seen = ids[:, place:][:, :1], mask[:, : ids.shape[1] + place + 1]
        out = model.forward(
            input_ids=token,
            attention_mask=seen,
            past_key_values=out.past_key_values,
            use_cache=True,
            **last_only(model),
        )
        steps.append(out.logits[:, -1])
    return torch.stack(steps, 1)


def _padded(model: Model, ids: Tensor, before: int) -> Tensor:
    """The last token's logits, in a batch with a longer text and from the cache, as ``decoding.batched`` reads it.

    ``before``: the number of tokens in front of the padding; as many as a prefix has, or none.
    """
    front, rest = ids[:, :before], ids[:, before:]
    two = torch.cat([torch.cat([front, ids[:, count : count + 2], rest], 1) for count in (1, 2)])
    mask = torch.ones_like(two)
    mask[1, before : before + 2] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    at: Callable[[slice], dict[str, Tensor]] = lambda part: (  # noqa: E731
        {"position_ids": places[:, part]} if takes(model, "position_ids") else {}
    )
    first: dict[str, Any] = {"input_ids": two[:, :-1], "attention_mask": mask[:, :-1], **at(slice(0, -1))}
    out = model.forward(**first, use_cache=True)
    last: dict[str, Any] = {"input_ids": two[:, -1:], "attention_mask": mask, **at(slice(-1, None))}
    out = model.forward(**last, past_key_values=out.past_key_values, use_cache=True)
    return out.logits[1:, -1]
