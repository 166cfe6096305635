"""The stage of ``real.py`` about codes: how much more they win at the same bytes than scales and norms alone.

A level's rate is searched for by short runs, and the best one learns in full. With --lr that rate comes first, so that
little time still gives one result. The full model has no codes that could take these changes, so no control of it
stands beside them. By KL to the full model there is nothing else to learn than to be like it.
"""

from real_arms import (
    LEVELS,
    TUNED,
    compressed_scores,
    full_scores,
    level,
    on_validation,
    say_closed,
    show_arms,
    tuned_scores,
    validation_ends,
    validation_shares,
)
from real_bench import Bench, Found

from ctplab.show.tables import table

CODES = (*TUNED, "codes")


def codes(bench: Bench) -> None:
    """Scales, norms and codes at both levels: one after the other, each with its search."""
    for name in LEVELS:
        with_codes(bench, name)


def with_codes(bench: Bench, name: str) -> None:
    """The arm ``scales+norms+codes`` of a level, beside those of the level's own stage that are there."""
    stage, record, folder = f"{name}-codes", bench.record, level(bench, name)
    found: dict[str, Found] = {"full": full_scores(bench), "compressed": compressed_scores(bench, name, folder)}
    alone = record.found(f"{name}-arms", "scales+norms")
    found |= {"scales+norms": alone} if alone else {}

    def in_full(lr: float) -> None:
        arm = f"scales+norms+codes, rate {lr:g}"
        found[arm] = record.piece(stage, arm, lambda: tuned_scores(bench, f"{name}-codes", folder, CODES, 1.0, lr))
        say_closed(bench, stage, arm, found)
        show_arms(bench, f"{name} with codes", found)

    if bench.options.lr:
        in_full(bench.options.lr)
    in_full(best_of(bench, name))


def best_of(bench: Bench, name: str) -> float:
    """The best of --code-rates after --rate-steps steps, by the text that is learned on."""
    stage, o, folder = f"{name}-codes", bench.options, level(bench, name)
    ends, rows, best = validation_ends(bench, stage, bench.models(folder)[0]), [], dict[float, float]()
    for lr in o.code_rates:

        def compute(lr: float = lr) -> Found:
            out = bench.tuned(f"{name}-codes", folder, CODES, bench.spec(lr=lr, steps=o.rate_steps))
            return on_validation(bench, bench.tuned_arm("codes", out).model)

        shares = validation_shares(ends, bench.record.piece(stage, f"search, {lr:g}", compute))
        rows.append([f"{lr:g}", *(share.percent for share in shares)])
        best[lr] = shares[0].value
    header = ["rate", f"{o.corpus}, validation", f"{o.aside}, validation"]
    title = f"Scales, norms and codes at {name} after {o.rate_steps} steps: share of the gap closed"
    bench.record.table(title, table(header, rows))
    return max(best, key=lambda lr: best[lr])
