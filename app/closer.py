"""A closer look at one text: what every arm thinks of every token, as plain JSON."""

from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import ARMS, Bench, Chosen


def look(
    bench: Bench, chosen: Chosen, arms: tuple[str, ...], hard_prompt: str, seed: int, text: str, top: int = 10,
    start: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Every arm's surprisal, KL to ``full`` and ``top`` likeliest tokens at every token of ``text``, as plain JSON.

    ``start`` is ``none`` for a rendered conversation, whose template has written its own.
    """
    text, hard_prompt = limits.text(text, "text"), limits.text(hard_prompt, "hard prompt")
    top, seed = limits.whole(top, "top", 1, 100), limits.whole(seed, "seed", 0, 2**31 - 1)
    if not 1 <= len(arms) <= len(ARMS):
        raise ctp.InputError("choose at least one arm, and each once")
    with bench.turns.turn():
        made = [bench.arm(name, chosen, hard_prompt, seed) for name in arms]
        seen = ctp.lens([arm for arm, _ in made], made[0][1].tokenizer, text, top=top, start=start)
    return {
        "tokens": seen.tokens,
        "start": seen.start,
        "arms": {
            name: {"surprisal": arm.surprisal, "kl": arm.kl, "alternatives": arm.alternatives}
            for name, arm in seen.arms.items()
        },
    }


def alternatives(seen: dict[str, Any] | None, position: int) -> dict[str, Any]:
    """The likeliest tokens of every arm at one place as a Dataframe value, with a column for each arm."""
    if not seen or not seen["tokens"]:
        return {"headers": ["rank"], "data": []}
    names = list(seen["arms"])
    columns = [seen["arms"][name]["alternatives"][position] for name in names]
    rows = [
        [rank + 1, *(f"{c[rank][0]!r}  {100 * c[rank][1]:.1f}%" if rank < len(c) else "" for c in columns)]
        for rank in range(max(map(len, columns), default=0))
    ]
    return {"headers": ["rank", *names], "data": rows}
