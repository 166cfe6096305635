"""A closer look at one text: what every arm thinks of every token, as plain JSON."""

from typing import Any

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import ARMS, Bench, Chosen
from ctplab.text.reading import STARTS


def look(
    bench: Bench, chosen: Chosen, arms: tuple[str, ...], hard_prompt: str, seed: int, text: str, top: int = 10,
    start: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Every arm's surprisal, KL to ``full`` and ``top`` likeliest tokens at every token of ``text``, as plain JSON.

    ``start`` is ``none`` for a rendered conversation, whose template has written its own.
    """
    text, hard_prompt = limits.text(text, "text"), limits.text(hard_prompt, "hard prompt")
    top, seed = limits.whole(top, "top", 1, 100), limits.whole(seed, "seed", 0, 2**31 - 1)
    limits.one_of(start, "start token", STARTS)
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
