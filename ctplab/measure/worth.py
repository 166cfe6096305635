"""What each row of a prompt is worth: how much worse the model does without it, with paired intervals.

    worth of row i = NLL(prompt without row i) - NLL(prompt)          nats a target, on the same targets

Without row i the prompt has k - 1 rows in the old order. So everything behind row i moves up by one position, the text
too: that is the prompt that one gets by cutting the row out. Worths do not add up to what the prompt wins. If two rows
do the same work, each is worth little, because the other is still there.

At 95% an interval excludes 0 by chance for one row in twenty: :func:`in_words` says how many that is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ctplab.disk import Keep, compute_always
from ctplab.errors import InputError
from ctplab.measure.perplexity import window_scores
from ctplab.measure.stats import Interval, change
from ctplab.progress import Progress, silent
from ctplab.prompts.arms import Arm
from ctplab.prompts.prefix import only
from ctplab.text.corpora import Split


@dataclass(frozen=True)
class RowWorth:
    """What one row is worth."""

    row: int
    worth: Interval
    """Rise of the NLL a target without the row; above 0 the row helps."""

    @property
    def verdict(self) -> str:
        """``helps``, ``harms`` or ``cannot tell``, by the 95% interval."""
        return "helps" if self.worth.low > 0 else "harms" if self.worth.high < 0 else "cannot tell"


def row_worth(
    arm: Arm,
    text: Split | Tensor,
    *,
    rows: Sequence[int] | None = None,
    batch: int = 16,
    limit: int | None = None,
    seed: int = 0,
    keep: Keep = compute_always,
    progress: Progress = silent,
) -> Iterator[RowWorth]:
    """Leave out one row after the other, and yield what it is worth on the first ``limit`` windows.

    ``rows``: which ones, in this order; None: all. ``keep`` stores each row's scores as soon as they are known, so a
    stopped measurement goes on where it stopped. A prefix of keys and values loses the row in every layer. Raises
    InputError if the prefix has less than two rows.
    """
    if arm.prefix.k < 2:
        raise InputError(f"a prompt of {arm.prefix.k} rows has none to leave out")
    chosen = range(arm.prefix.k) if rows is None else rows
    whole = window_scores(arm, text, batch=batch, limit=limit, keep=keep, name="whole")
    for row in progress(chosen, total=len(chosen), label="leave one out"):
        rest = only(arm.prefix, [other for other in range(arm.prefix.k) if other != row])
        without = Arm(f"{arm.name} without row {row}", arm.model, rest)
        scores = window_scores(without, text, batch=batch, limit=limit, keep=keep, name=f"without-{row}")
        yield RowWorth(row, change(scores, whole, seed=seed))


def in_words(found: Sequence[RowWorth], gain: Interval | None = None) -> list[str]:
    """State what the worths say. ``gain``: the fall of the NLL a target by the whole prompt, if ``found`` has all
    of its rows."""
    verdicts = [row.verdict for row in found]
    chance = len(found) / 40
    lines = [
        f"Of {len(found)} rows {verdicts.count('helps')} help, {verdicts.count('harms')} harm, and of "
        f"{verdicts.count('cannot tell')} one cannot tell. By chance about {chance:.1f} would seem to help and as many "
        "to harm."
    ]
    if gain is not None:
        total = sum(row.worth.value for row in found)
        lines.append(
            f"The whole prompt wins {gain.value:.4f} nats a token [{gain.low:.4f}, {gain.high:.4f}]; the rows' worths "
            f"add up to {total:.4f}. "
            + (
                "Rows stand in for each other."
                if total < gain.low
                else "Rows need each other."
                if total > gain.high
                else "Whether rows stand in for each other or need each other cannot be told."
            )
        )
    return lines
