"""What a learning curve and the size of the text say about the data: a line each, or none.

    early    the best validation came in the first third of the steps, and later ones are clearly worse
    idle     no validation was better than the start
    short    fewer distinct target tokens than learned values, and the steps read them more than once

*Early* is what a text that is learned by heart looks like: the rate falls to zero, so a curve that does not overfit
is best near its end. The best values are kept whatever comes later. *Short* is no law: it is where the runs in
``docs/results`` begin to overfit (see :data:`PER_VALUE`).
"""

from collections.abc import Sequence

EARLY = 1 / 3
"""The best step came early if it is in this share of the steps."""
CLEARLY = 0.05
"""Later validations are clearly worse if they lost more than this share of what the best had won."""
PER_VALUE = 1.0
"""Distinct target tokens that a learned value asks for, if they are read more than once."""


def curve_note(validations: Sequence[tuple[int, float]], best_step: int, steps: int) -> str | None:
    """A line if the curve says that the text was learned by heart, or that nothing was learned.

    ``validations``: (steps taken, NLL a token), the first before any step; ``steps``: how many were taken.
    """
    if len(validations) < 4:  # too few to tell early from late
        return None
    start, best = validations[0][1], min(nll for _, nll in validations)
    if best_step == 0:
        return (
            "no validation was better than the start: the result is what it started from. Try a smaller learning rate, "
            "or another text"
        )
    late = [nll for step, nll in validations if step > (1 - EARLY) * steps]
    lost = min(late, default=best) - best
    if best_step > EARLY * steps or lost <= CLEARLY * (start - best):
        return None
    return (
        f"validation was best after {best_step} of {steps} steps and {lost:.3f} nats a token worse later: the text "
        "seems to be learned by heart. The best is kept; more text, fewer learned values or fewer steps would help"
    )


def size_note(values: int, targets: int, seen: float) -> str | None:
    """A line if the text is shorter than the number of learned ``values`` asks for.

    ``targets``: distinct target tokens of the training text; ``seen``: how many times the steps read them.
    """
    if seen <= 1 or targets >= PER_VALUE * values:
        return None
    return (
        f"{values:,} learned values, but only {targets:,} target tokens to learn them from, read {seen:.1f} times: "
        "what is learned may be this text. More text or fewer values would help"
    )
