"""The paper's numbers: the corrected column follows from the printed one, and the recipes cover every table."""

import math

import pytest

import ctplab as ctp
from ctplab.paper import printed, recipes
from ctplab.prompts import prefix

ALL = [value for table in printed.TABLES.values() for value in table.values]


def at(name, **wanted):
    return [v for v in printed.TABLES[name].values if all(getattr(v, key) == x for key, x in wanted.items())]


def test_the_corrected_column_follows_from_the_printed_one():
    for value in ALL:
        if value.stderr is None and value.k:
            assert value.method not in ("none", "lora")
            assert value.corrected == pytest.approx(value.printed ** ((1023 + value.k) / 1023), rel=1e-12)
            # the other way round: the released evaluator's mean over k more positions gives the printed number
            assert math.exp(math.log(value.corrected) * 1023 / (1023 + value.k)) == pytest.approx(value.printed)
        else:
            assert value.corrected == value.printed


def test_the_three_fingerprints():
    """What speaks for the tables having come from the released evaluator (compression.md, section 0)."""
    (bloom,) = at("table7", model="BLOOM-7B", method="soft")
    (bare,) = at("table7", model="BLOOM-7B", level="3-bit", method="none")
    assert round(bloom.corrected, 2) == bare.printed == 28.32  # the prompt does nothing, to the digit
    ablation = [v.corrected for v in at("table9", method="direct")]
    assert [round(x, 2) for x in ablation] == [9.78, 9.57, 9.53, 9.48]  # flat in k
    for name in ("table1", "table3"):
        for model in ("LLaMA-2-13B", "BLOOM-7B"):
            (soft,), (lora,) = at(name, model=model, method="soft"), at(name, model=model, method="lora")
            assert soft.corrected == pytest.approx(lora.printed, rel=0.02)  # on a par with LoRA


def test_tables_are_complete_and_agree_with_each_other():
    assert {name: len(table.values) for name, table in printed.TABLES.items()} == {
        "table1": 8, "table2": 22, "table3": 8, "table4": 9, "table6": 8, "table7": 6, "table8": 52, "table9": 5
    }  # fmt: skip
    keys = [(name, v.model, v.level, v.method, v.what, v.k) for name, t in printed.TABLES.items() for v in t.values]
    assert len(keys) == len(set(keys))
    # the same experiments, printed twice
    for what, name in (("PTB", "table2"), ("PTB", "table6")):
        assert at(name, level="3-bit", method="none", what=what)[0].printed == 15.74
    assert at("table2", what="PTB", level="3-bit", method="direct")[0].printed == at("table9", k=100)[0].printed


def test_the_bug_is_the_exponent(llama, tokenizer, web):
    """One prompted model, scored both ways: undoing the published form gives the true perplexity back."""
    arm = ctp.Arm("soft", llama, prefix.random_rows(llama, 7))
    score = ctp.perplexity(arm, web.test, limit=3)
    assert printed.undo(score.ppl_as_published(7, 48), 7, 48) == pytest.approx(score.ppl, rel=1e-12)


def test_recipes_cover_every_table_and_say_what_they_need():
    for name, table in printed.TABLES.items():
        if name == "table8":
            continue
        rows = recipes.PERPLEXITIES[name]
        assert [row.value for row in rows] == list(table.values)
        assert {row.level for row in rows} <= {"fp16", *recipes.LEVELS}
        told = recipes.needs(rows, recipes.PAPER)
        assert "GB of GPU memory" in told and "hours" in told and "30000 steps" in told
        assert ("LoRA" in told) == any(value.method == "lora" for value in table.values)
        assert {(row.model, row.k) for row in rows} == {(v.model, v.k) for v in table.values}
    assert [row.value.printed for row in recipes.PERPLEXITIES["figure2"] if row.value] == [11, 691, 14, 53]
    assert len(recipes.PERPLEXITIES["figure4"]) == 6 * 7 * 3
    assert {row.learned_on for row in recipes.PERPLEXITIES["table6"]} == {None, "C4", "Wikitext2"}
