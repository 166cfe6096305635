"""What curve and text say against a learned result: the cases by hand, and a text that is learned by heart."""

from dataclasses import replace

import pytest
from commands import run

import ctplab as ctp
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir
from ctplab.learning.sanity import curve_note, size_note

FALLING = [(0, 4.0), (10, 3.0), (20, 2.5), (30, 2.2), (40, 2.1)]


def test_a_curve_that_is_best_at_its_end_says_nothing():
    assert curve_note(FALLING, 40, 40) is None


@pytest.mark.parametrize(("later", "said"), [(3.2, True), (3.04, False)])  # a twentieth of 1 nat is 0.05
def test_best_early_and_clearly_worse_later(later, said):
    curve = [(0, 4.0), (10, 3.0), (20, 3.1), (30, later), (40, later)]
    found = curve_note(curve, 10, 40)
    assert (found is not None) == said
    assert not said or ("after 10 of 40 steps and 0.200 nats" in found and "\n" not in found)
    assert (
        curve_note([(0, 4.0), (10, 3.5), (20, 3.0), (30, later), (40, later)], 20, 40) is None
    )  # not in the first third


def test_nothing_learned_and_too_few_to_tell():
    assert "no validation was better" in curve_note([(0, 2.0), (10, 2.1), (20, 2.1), (30, 2.2)], 0, 30)
    assert curve_note([(0, 2.0), (10, 2.1), (20, 2.1)], 0, 20) is None


def test_values_against_tokens():
    assert size_note(100, 100, 5.0) is None and size_note(100, 99, 1.0) is None
    assert "1,000 learned values, but only 99 target tokens to learn them from, read 3.0 times" in size_note(
        1000, 99, 3
    )


def test_a_short_text_is_learned_by_heart(web, quiet):
    """Keys and values on four windows: the loop counts values, targets and readings, and warns."""
    model, _ = ctp.load(data_dir() / SHOWCASE, device="cpu")
    recipe = ctp.PromptSpec.kv_prefix(
        tokens=8, steps=32, batch=2, lr=0.03, evaluate_every=4, validation_windows=8, warmup=2
    )
    short = replace(web.train, stream=web.train.stream[: 4 * 48])
    learned = ctp.learn_kv(model, short, web.validation, recipe, **quiet)
    assert learned.values == sum(t.numel() for pair in learned.prefix.kv for t in pair)
    assert (learned.train_tokens, learned.epochs) == (4 * 47, 16.0)
    size, curve = learned.warnings
    assert "learned values" in size and "by heart" in curve
    assert learned.best_validation == min(s.validation for s in learned.steps if s.validation is not None)


def test_learn_says_it_in_one_line(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The moon is made of rock. " * 20)
    recipe = ("--tokens", "4", "--steps", "2", "--batch", "20", "--seq-len", "16", "--out", tmp_path / "prompt")
    code, _, err = run(capsys, "learn", data_dir() / "model", "--corpus", f"file:{text},{text},{text}", *recipe)
    said = [line for line in err.replace("\r", "\n").splitlines() if "learned values" in line]
    assert code == 0 and len(said) == 1 and said[0].startswith("ctplab: 1,024 learned values")
    assert len(ctp.load_prompt(tmp_path / "prompt").info["warnings"]) == 1
