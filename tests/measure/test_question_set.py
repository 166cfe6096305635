"""A question set gives each arm's own answers, in any blocks, and goes on where it stopped."""

import csv
import io
import json

import pytest
import torch

import ctplab as ctp
from ctplab.errors import InputError
from ctplab.measure.outcomes import KINDS, flips_against_full, kinds, summary, verdict_words
from ctplab.measure.question_set import as_json, ask
from ctplab.show.question_files import as_csv, comparator, jsonl
from ctplab.show.tables import flips_table
from ctplab.text import questions
from ctplab.text.questions import Asked

ASKED = [Asked(f"Where is town {n}?", ("there",)) for n in range(5)]


def row(full, compressed, soft, texts=("a", "b", "c")):
    marks = dict(zip(("full", "compressed", "soft"), (full, compressed, soft), strict=True))
    answers = {arm: {"text": t, "right": r, "how": ""} for (arm, r), t in zip(marks.items(), texts, strict=True)}
    return {"question": "q", "expected": ["a"], "answers": answers}


@pytest.fixture
def two(llama, front):
    return [front(llama, "none"), front(llama, "soft")]


def test_answers_are_those_of_generate(two, tokenizer):
    rows = as_json(ASKED, list(ask(two, tokenizer, ASKED, max_new_tokens=6, block=2)))
    for arm in two:
        texts = [f"Q: {item.text}\nA:" for item in ASKED]
        alone = [ctp.generate(arm, tokenizer, [t], max_new_tokens=6, stop="\n")[0].text.strip() for t in texts]
        assert [r["answers"][arm.name]["text"] for r in rows] == alone


def test_blocks_come_for_all_arms_in_turn_and_are_kept(two, tokenizer, tmp_path):
    keep, seen = ctp.kept_in(tmp_path), []
    for block in ask(two, tokenizer, ASKED, max_new_tokens=4, block=2, keep=keep):
        seen.append((block.arm, block.start))
        if len(seen) == 3:
            break
    assert seen == [("none", 0), ("soft", 0), ("none", 2)]

    def forbidden(name, key, compute):
        return keep(name, key, compute if (tmp_path / f"{name}.json").exists() is False else None)

    again = list(ask(two, tokenizer, ASKED, max_new_tokens=4, block=2, keep=forbidden))
    fresh = list(ask(two, tokenizer, ASKED, max_new_tokens=4, block=3))
    assert as_json(ASKED, again) == as_json(ASKED, fresh)


def test_other_weights_are_asked_again(two, tokenizer, tmp_path):
    keep = ctp.kept_in(tmp_path)
    before = as_json(ASKED, list(ask(two[:1], tokenizer, ASKED, max_new_tokens=4, keep=keep)))
    with torch.no_grad():
        two[0].model.lm_head.weight.mul_(-1)
    after = as_json(ASKED, list(ask(two[:1], tokenizer, ASKED, max_new_tokens=4, keep=keep)))
    assert before != after


def test_kinds_of_questions():
    assert set(kinds(row(True, True, True, ("a", "A.", "a")))) == {"all right"}
    assert set(kinds(row(True, False, True))) == {"lost by compression", "lost, then recovered", "arms differ"}
    assert set(kinds(row(True, False, False))) == {"lost by compression", "arms differ"}
    assert set(kinds(row(False, True, False, ("x", "x", "x")))) == {"broken by the prompt"}
    assert kinds(row(True, None, True, ("x", "x", "x"))) == []  # undecided is neither lost nor right
    assert set(KINDS) >= {"all right", "arms differ"}


def test_shares_and_paired_differences():
    rows = [row(True, False, True)] * 8 + [row(True, True, True)] * 12
    rows.append({"question": "unfinished", "expected": [], "answers": {"full": rows[0]["answers"]["full"]}})
    found = summary(rows)
    assert (found["asked"], found["answered"]) == (21, 20)
    assert found["shares"]["compressed"]["value"] == 0.6 and found["shares"]["soft"]["value"] == 1
    won = found["differences"]["soft - compressed"]
    assert (won["value"], won["won"], won["lost"], won["n"]) == (0.4, 8, 0, 20)
    assert won["p"] == pytest.approx(2 * 0.5**8) and won["low"] > 0
    assert verdict_words(won) == "better"
    assert verdict_words(found["differences"]["compressed - full"]) == "worse"
    few = summary([row(True, False, True), row(True, True, True)])["differences"]["soft - compressed"]
    assert verdict_words(few) == "cannot tell"


def test_flips_against_the_full_model():
    rows = [row(True, False, True)] * 3 + [row(False, True, True)] * 2 + [row(True, True, None)]
    found = summary(rows)["flips"]
    assert {key: found["compressed"][key] for key in ("lost", "won", "n")} == {"lost": 3, "won": 2, "n": 6}
    assert {key: found["soft"][key] for key in ("lost", "won", "n")} == {"lost": 0, "won": 2, "n": 5}
    assert found["compressed"]["p"] == 1.0 and found["soft"]["p"] == 0.5  # binomial: 2 of 2
    assert "full" not in found and flips_against_full({"compressed": [True]}) == {}
    line = flips_table(found).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[1:6]] == ["compressed", "3", "2", "6", "1"]


def test_files_for_others():
    rows = [row(True, False, True), row(True, True, False, ("=1+1", "x,y", 'say "z"'))]
    about = {"prompt": "mine", "seed": 3}
    assert [json.loads(line)["kinds"] for line in jsonl(rows, about).splitlines()] == [kinds(r) for r in rows]
    read = list(csv.DictReader(io.StringIO(as_csv(rows, about))))
    assert read[0]["full"] == "a" and read[0]["compressed right"] == "no"
    assert read[1]["full"] == "'=1+1" and read[1]["soft"] == 'say "z"'
    assert read[0]["prompt"] == "mine" and json.loads(jsonl(rows, about).splitlines()[0])["settings"] == about
    found = json.loads(comparator(rows, "compressed", "soft", "test", about))
    assert [model["name"] for model in found["models"]] == ["compressed", "soft"]
    assert [example["score"] for example in found["examples"]] == [-1.5, 1.5]
    needed = {"input_text", "tags", "output_text_a", "output_text_b", "score", "individual_rater_scores"}
    assert all(needed <= set(example) for example in found["examples"])
    assert set(found["metadata"]) == {"source_path", "custom_fields_schema"}
    assert found["metadata"]["source_path"] == "test (prompt: mine; seed: 3)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", "\ufeffquestion,answer\nWhere?,there\n\"Who, then?\",\n"),
        ("q.jsonl", '{"question": "Where?", "answer": "there"}\n\n{"prompt": "Who, then?"}\n'),
        ("q.json", '[{"question": "Where?", "answer": ["there"]}, {"question": "Who, then?"}]'),
        ("q.txt", "Where?\tthere\nWho, then?\r\n"),
    ],
)  # fmt: skip
def test_the_same_questions_in_every_form(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    expected = [Asked("Where?", ("there",)), Asked("Who, then?")]
    assert questions.read(path) == expected
    assert name == "q.txt" or questions.parse(content.lstrip("\ufeff")) == expected


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        (".jsonl", '{"question": "a"}\n{"question": 3}', "line 2: there is no question"),
        (".jsonl", '{"question": "a"', "line 1: this is no JSON"),
        (".jsonl", '{"question": "a", "answer": {"b": 1}}', "line 1: an answer is"),
        (".json", '{"question": "a"}', "give an array"),
        (".json", "[" * 100_000, "this is no JSON"),
        (".csv", "text\nabc\n", "line 2: there is no question"),
        (".txt", " \n", "has no questions"),
        (".txt", "a\n" * 20_001, "at most 20,000"),
    ],
)
def test_bad_lists_are_one_line(kind, content, words):
    with pytest.raises(InputError, match=words) as caught:
        questions.parse(content, "list", kind)
    assert "\n" not in str(caught.value)


def test_the_embedded_questions():
    asked = questions.atlas(3)
    assert len(asked) == 3 and all(item.expected for item in asked)
