"""The embedded world: the facts are well formed and consistent, the text is deterministic, the splits are disjoint."""

import string
from collections import Counter

import pytest

from ctplab.atlas.docs import prose
from ctplab.atlas.facts import facts, tables
from ctplab.atlas.questions import FORM, is_correct, questions
from ctplab.atlas.registers import SPLITS, WRITERS, document

FILLERS = {"number", "day", "month", "surname"}


def test_enough_facts_in_good_form():
    assert len(facts()) >= 2000
    for fact in facts():
        for text in (fact.name, fact.value):
            assert text.isascii() and text == " ".join(text.split()) and 0 < len(text) <= 60, fact
            assert not set(text) & set('{}()"'), fact


@pytest.mark.parametrize("table", tables(), ids=lambda t: t.key)
def test_templates_name_what_they_must(table):
    for attribute in {fact.attribute for fact in table.facts}:
        section = table.templates[attribute]
        assert len(section["question"]) >= 4 and all(len(section[r]) >= 6 for r in ("web", "wiki", "news"))
        for kind, lines in section.items():
            assert len(set(lines)) == len(lines)
            for line in lines:
                fields = {name for _, name, _, _ in string.Formatter().parse(line) if name}
                needed = {"name"} if kind == "question" else {"name", "value"}
                assert needed <= fields <= needed | FILLERS, line
                assert kind != "question" or line.endswith("?"), line


def test_each_fact_is_stated_once():
    counts = Counter((f.table, f.name, f.attribute) for f in facts())
    assert max(counts.values()) == 1


def test_tables_agree_with_each_other():
    by_table = {table.key: {(f.name, f.attribute): f.value for f in table.facts} for table in tables()}
    countries = {f.name for t in tables() if t.key == "countries" for f in t.facts}
    states = {v for (_, a), v in by_table["us_cities"].items() if a == "state"}
    assert len(states) <= 51 and {"California", "Oklahoma"} <= states  # 50 states and the capital's district
    assert {v for (_, a), v in by_table["world_cities"].items()} <= countries
    nations = {v for (_, a), v in by_table["inventions"].items() if a == "nation"}
    assert len(nations - countries) <= 4, nations - countries  # ancient ones
    regions = Counter(v for (_, a), v in by_table["countries"].items() if a == "region")
    assert min(regions.values()) >= 2, regions  # no region of a slip of the pen
    symbols = [v for (_, a), v in by_table["elements"].items() if a == "symbol"]
    assert len(set(symbols)) == 118
    capitals = [v for (_, a), v in by_table["countries"].items() if a == "capital"]
    assert len(set(capitals)) == len(capitals)


def test_the_papers_figure_1_is_here():
    known = {(f.name, f.value) for f in facts()}
    assert {("Long Beach", "California"), ("Tulsa", "Oklahoma"), ("asparagus", "spring vegetable")} <= known


def test_questions_have_exact_answers_and_true_distractors():
    asked = questions()
    assert len(asked) >= 1000 and sum(q.held_out for q in asked) == len(asked) // 2
    for q in asked:
        assert is_correct(f" {q.answer}\nQ: more", q)
        assert not any(is_correct(d, q) for d in q.distractors)


@pytest.mark.parametrize("name", WRITERS)
def test_documents_are_deterministic_and_splits_disjoint(name):
    texts = {split: [document(name, split, i) for i in range(200)] for split in SPLITS}
    assert texts["test"] == [document(name, "test", i) for i in range(200)]
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert len(set(texts[a]) & set(texts[b])) <= 2  # tiny pages may coincide
    assert all(text.isascii() and text.strip() for text in texts["train"])


def test_held_out_facts_are_never_asked_in_training_text():
    held = {t.format(name=f.name) for table in tables() for f in table.facts if f.held_out
            for t in table.templates[f.attribute]["question"]}  # fmt: skip
    asked = {
        line.removeprefix("Q: ")
        for i in range(3000)
        for line in document("atlas-web", "train", i).split("\n")
        if line.startswith("Q: ")
    }
    assert len(asked) > 2000 and not asked & held
    assert FORM.startswith("Q: ")


def test_news_follows_the_treebanks_conventions():
    text = "\n".join(document("atlas-news", "train", i) for i in range(100))
    assert not any(c.isdigit() for c in text) and text.replace("N", "").islower()


def test_prose_drops_code_and_keeps_sentences():
    kept = prose(
        "Return the sum.\n\n>>> f(1)\n2\n\nThis function adds two numbers and returns their sum, rounded down.\n"
    )
    assert kept == "This function adds two numbers and returns their sum, rounded down."
