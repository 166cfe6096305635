"""Cut prompts: which rows stay, what their files say, and that they are prompts like any other."""

import pytest
import torch
from commands import refused, run, run_json

import ctplab as ctp
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir
from ctplab.formats.prompt_file import shorter, write
from ctplab.measure.cuts import order
from ctplab.prompts import prefix
from ctplab.runs.controls import recipe_of


@pytest.fixture
def arm(llama):
    return ctp.Arm("soft", llama, prefix.random_rows(llama, 6))


def test_the_row_with_the_least_worth_goes_first(arm, web):
    worth = {each.row: each.worth.value for each in ctp.row_worth(arm, web.validation, limit=3)}
    found = order("worth", arm, web.validation, limit=3)
    assert [worth[row] for row in found] == sorted(worth.values(), reverse=True)
    mass = ctp.attention_mass(arm, web.validation, limit=3).mean
    assert mass[order("attention", arm, web.validation, limit=3)].diff().max() <= 0


def test_orders_that_look_at_nothing(arm, web):
    assert order("first", arm, web.validation) == list(range(6))
    drawn = [order("random", arm, web.validation, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0]) == list(range(6))
    with pytest.raises(ctp.InputError, match="not by 'taste'"):
        order("taste", arm, web.validation)


def test_a_cut_prompt_is_a_prompt_that_says_what_it_was_cut_from(tmp_path, tokenizer):
    model, _ = ctp.load(data_dir() / SHOWCASE, device="cpu")
    whole = ctp.load_prompt(data_dir() / "prompt")
    found = shorter(whole, [7, 3, 50], by="worth")
    write(found.prefix, found.initial, found.info, tmp_path / "cut")
    saved = ctp.load_prompt(tmp_path / "cut")
    assert saved.info["cut"] == {"of": 100, "rows": [3, 7, 50], "by": "worth"} and saved.info["k"] == 3
    assert torch.equal(saved.rows()[0].rows, whole.rows()[0].rows[[3, 7, 50]])
    assert torch.equal(saved.rows()[1].rows, whole.rows()[1].rows[[3, 7, 50]])
    assert [*saved.rows()[1].ids] == [whole.rows()[1].ids[i] for i in (3, 7, 50)]
    assert ctp.attach(saved, model, tokenizer, tag=SHOWCASE) == ctp.attach(whole, model, tokenizer, tag=SHOWCASE)
    assert "curve" not in saved.info and "validation_nll" not in saved.info  # the whole prompt's
    with pytest.raises(ctp.InputError, match="not learned from a fresh start"):  # no control repeats its recipe
        recipe_of(saved, tokenizer)


def test_on_the_command_line(capsys, tmp_path):
    small, prompt, out = data_dir() / SHOWCASE, tmp_path / "prompt", tmp_path / "cuts"
    few = shorter(ctp.load_prompt(data_dir() / "prompt"), range(4))
    write(few.prefix, few.initial, few.info, prompt)
    command = ("cut", prompt, "--model", small, "--windows", "2", "--seq-len", "48", "--choose", "2", "--out", out)
    found = run_json(capsys, *command, "--keep", "2", "--full", "atlas")
    names = ["full", "none", "whole", "k2-worth", "k2-attention", "k2-first", "k2-random"]
    assert [row["prompt"] for row in found["prompts"]] == names
    rows = {row["prompt"]: row for row in found["prompts"]}
    assert rows["none"]["recovery"]["value"] == 0 and rows["whole"]["change"]["value"] == 0
    assert ctp.load_prompt(out / "k2-first").info["cut"]["rows"] == [0, 1]
    code, text, _ = run(capsys, *command, "--keep", "2,3", "--by", "first", "--beside", out / "k2-worth")
    assert code == 0 and "k3-first" in text and "recovery" not in text
    assert "another prompt" in refused(capsys, *command, "--keep", "2", "--by", "random", "--seed", "1")
    assert "from 1 to 3" in refused(capsys, *command, "--keep", "4")
    assert "worth, attention" in refused(capsys, *command, "--by", "taste")
