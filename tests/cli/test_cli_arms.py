"""Which arm a command line asks for."""

import pytest
import torch
from commands import refused, run_json
from conftest import tiny

import ctplab as ctp
from ctplab.cli import parser
from ctplab.cli.shared import chosen_arm
from ctplab.formats.prompt_file import made_for, write
from ctplab.learning.rows import initial_rows
from ctplab.prompts.prefix import KVPrefix, Prefix


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A tiny model, and a prompt of 6 rows that were learned from its vocabulary rows of seed 3."""
    model = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    start = initial_rows(model, ctp.PromptSpec(tokens=6, seed=3))
    write(Prefix("soft", start.rows + 1, start.ids), start, made_for(model, tokenizer), tmp_path / "prompt")
    return tmp_path


def chosen(folder, model, tokenizer, *options: str) -> ctp.Arm:
    return chosen_arm(parser().parse_args(["score", str(folder / "model"), *options]), model, tokenizer)


def test_the_random_control_is_not_the_untrained_prompt_of_its_seed(folder, llama, tokenizer):
    """At k = 1 chance alone would make some equal: there are 2048 rows and 60 seeds."""
    for seed in range(60):
        for k in (1, 2, 8, 100):
            arm = chosen(folder, llama, tokenizer, "--control", "random", "--seed", str(seed), "--tokens", str(k))
            start = initial_rows(llama, ctp.PromptSpec(tokens=k, seed=seed))
            assert arm.prefix.k == k and arm.prefix.ids != start.ids
            assert isinstance(arm.prefix, Prefix) and not torch.equal(arm.prefix.rows, start.rows)


def test_beside_a_prompt_the_random_control_has_its_length_and_avoids_its_start(folder, llama, tokenizer):
    start = initial_rows(llama, ctp.PromptSpec(tokens=6, seed=3))
    random = ("--prompt", str(folder / "prompt"), "--control", "random")
    for seed in range(6):  # seed 2 would draw the start of seed 3 next
        arm = chosen(folder, llama, tokenizer, *random, "--seed", str(seed))
        assert arm.name == "random" and arm.prefix.k == 6 and arm.prefix.ids != start.ids
    assert chosen(folder, llama, tokenizer, *random, "--tokens", "9").prefix.k == 9
    assert chosen(folder, llama, tokenizer, "--control", "random").prefix.k == 100


def test_beside_a_prompt_of_keys_and_values_too(folder, llama, tokenizer):
    kv = KVPrefix("soft", tuple((torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)) for _ in range(2)))
    write(kv, None, made_for(llama, tokenizer), folder / "kv")
    arm = chosen(folder, llama, tokenizer, "--prompt", str(folder / "kv"), "--control", "random")
    assert arm.prefix.k == 5 and isinstance(arm.prefix, Prefix)


def test_every_way_to_choose_an_arm(folder, llama, tokenizer):
    arms = {
        "full": (),
        "soft": ("--prompt", str(folder / "prompt")),
        "hard": ("--hard-prompt", "paper"),
        "bos": ("--control", "bos"),
        "random": ("--control", "random"),
    }
    for name, options in arms.items():
        assert chosen(folder, llama, tokenizer, *options).name == name


def test_what_excludes_each_other_is_said(capsys, folder):
    capsys.readouterr()
    score = ("score", folder / "model")
    for pair in (
        ("--prompt", folder / "prompt", "--hard-prompt", "x"),
        ("--prompt", folder / "prompt", "--control", "bos"),
        ("--hard-prompt", "x", "--control", "random"),
    ):
        assert "give one of --prompt, --hard-prompt and --control" in refused(capsys, *score, *pair)
    assert "--tokens: must be at least 1, not 0" in refused(capsys, *score, "--control", "random", "--tokens", "0")
    assert "invalid choice: 'init'" in refused(capsys, *score, "--control", "init")


def test_scored_through_the_command(capsys, folder):
    common = ("score", folder / "model", "--seq-len", "24", "--windows", "2", "--dtype", "float32")
    random = run_json(capsys, *common, "--control", "random", "--prompt", folder / "prompt")
    assert (random["arm"], random["dtype"]) == ("random", "float32")
    same = run_json(capsys, *common, "--control", "random", "--tokens", "6")
    assert same["corpora"] == random["corpora"], "seed 0 draws rows that neither start has"
