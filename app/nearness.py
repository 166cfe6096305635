"""How near every arm of a report is to the full model: its distributions, and its answers. For the tab *Results*."""

from typing import Any

import ctplab as ctp
from ctplab.show.tables import p_text, share

CLOSE = ["arm", "mean KL, nats [95%]", "median", "99th percentile", "same first choice"]
FLIPS = ["arm", "right to wrong", "wrong to right", "of", "p"]


def close(result: dict[str, Any], corpus: str) -> dict[str, Any]:
    """How close each arm's predictions are to the full model's, as a Dataframe value; empty for older reports."""
    near = result.get("fidelity", {}).get(corpus, {})
    data = []
    for arm, told in near.items():
        kl = [str(ctp.Interval(**told[key])) for key in ("mean", "median", "p99")]
        data.append([arm, *kl, f"{share(ctp.Interval(**told['same_top']))}%"])
    return {"headers": CLOSE, "data": data}


def turned(result: dict[str, Any]) -> dict[str, Any]:
    """Answers that an arm has wrong and the full model right, and the other way round; empty for older reports."""
    found = result.get("flips", {})
    data = [[arm, f["lost"], f["won"], f["n"], p_text(f["p"])] for arm, f in found.items()]
    return {"headers": FLIPS, "data": data}
