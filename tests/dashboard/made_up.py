"""A report of ``ctplab demo`` with round numbers."""

import ctplab as ctp
from ctplab.demo.embedded import CORPORA


def report():
    def cell(x):
        return {"value": x, "low": x - 0.1, "high": x + 0.1}

    shares = {name: {"soft": cell(0.5), "bos": cell(0.0)} for name in CORPORA}
    level = {"ppl": dict.fromkeys(CORPORA, 2.0), "bytes": 1_000_000, "bits_per_weight": 4.1}
    answers = {"exact_match": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    return {
        "levels": {"full": level, "w4": level, "w3": level},
        "showcase": "w4",
        "learned_on": "atlas-web",
        "questions": {"full": answers, "soft": answers},
        "perplexity": {name: {"full": 1.8, "soft": 1.9} for name in CORPORA},
        "recovery": shares,
        "transfer": {t: {c: {"compressed": 2.2, "soft": 2.0} for c in CORPORA} for t in ("w4", "w3")},
        "prompt": {"spec": ctp.PromptSpec(tokens=4).to_json()},
        "seed": 0,
    }
