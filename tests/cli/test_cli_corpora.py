"""Lists of corpora on the command line: commas, repeated options, and files with splits among them."""

import random

import pytest
from commands import refused, run, run_json
from conftest import tiny

import ctplab as ctp
from ctplab.cli import parser
from ctplab.cli.shared import split_corpora
from ctplab.text.corpora import NAMES

SEVERAL = {
    "score": (("m",), "--corpus", ["atlas-web"]),
    "recover": (("--full", "a", "--compressed", "b", "--prompt", "p"), "--corpus", ["atlas-web"]),
    "transfer": (("--prompts", "p", "--targets", "t"), "--corpora", []),
    "reproduce": (("table1",), "--corpus", []),
}
"""Command -> what else it needs, the option, its default."""


@pytest.mark.parametrize(
    "text, names",
    [
        ("", []),
        ("docs", ["docs"]),
        ("atlas-web,docs", ["atlas-web", "docs"]),
        ("atlas-web,,docs,", ["atlas-web", "docs"]),
        ("file:a.txt", ["file:a.txt"]),
        ("file:a,b,c", ["file:a,b,c"]),
        ("file:a.txt,docs", ["file:a.txt", "docs"]),
        ("docs,file:a,b,c,c4", ["docs", "file:a,b,c", "c4"]),
        ("file:a,file:b,c,d", ["file:a", "file:b,c,d"]),
        ("file:a,./docs,b", ["file:a,./docs,b"]),
        ("c5,docs", ["c5", "docs"]),
    ],
)
def test_where_names_end(text, names):
    assert split_corpora(text) == names


def test_any_list_comes_back_as_it_was_joined():
    rng = random.Random(0)
    known = [name for name in NAMES if name != "file:PATH"]
    for _ in range(500):
        files = ["file:" + ",".join(f"/d/{rng.randrange(99)}.txt" for _ in range(rng.choice((1, 3)))) for _ in range(3)]
        names = rng.choices(known + files, k=rng.randrange(1, 8))
        assert split_corpora(",".join(names)) == names


@pytest.mark.parametrize("command", SEVERAL)
def test_every_command_that_takes_several_corpora_takes_them_alike(command):
    more, flag, default = SEVERAL[command]
    dest = flag.removeprefix("--")

    def chosen(*values: str) -> list[str]:
        options = [part for value in values for part in (flag, value)]
        return getattr(parser().parse_args([command, *more, *options]), dest)

    assert chosen() == default and chosen("") == []
    assert chosen("c4,docs") == chosen("c4", "docs") == ["c4", "docs"]
    assert chosen("c4", "file:a,b,c", "docs") == ["c4", "file:a,b,c", "docs"]
    assert chosen() == default, "an earlier command line changes no default"


def test_one_help_text_explains_it(capsys):
    for command in SEVERAL:
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
        words = " ".join(capsys.readouterr().out.split())
        assert "file:TRAIN,VALIDATION,TEST" in words and "up to the name of a known corpus" in words, command


@pytest.fixture
def texts(tmp_path):
    for i, name in enumerate(("train", "validation", "test", "whole")):
        words = [f"The {i} river {n} is long." for n in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(words))
    return tmp_path


@pytest.fixture
def model(tokenizer, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_score_takes_a_file_with_splits_among_others(capsys, tokenizer, texts, model):
    splits = "file:" + ",".join(str(texts / f"{name}.txt") for name in ("train", "validation", "test"))
    whole = f"file:{texts / 'whole.txt'}"
    score = ("score", model, "--seq-len", "16", "--windows", "2", "--device", "cpu")
    one = run_json(capsys, *score, "--corpus", f"{whole},{splits},atlas-web")
    assert list(one["corpora"]) == [whole, splits, "atlas-web"]
    assert run_json(capsys, *score, "--corpus", whole, "--corpus", splits, "--corpus", "atlas-web") == one
    loaded, _ = ctp.load(model, device="cpu")
    windows = ctp.corpus(f"file:{texts / 'test.txt'},{texts / 'test.txt'},{texts / 'test.txt'}", tokenizer, 16).test
    alone = ctp.perplexity(ctp.arms(loaded)[0], windows, limit=2)
    assert one["corpora"][splits]["ppl"] == pytest.approx(alone.ppl, rel=1e-6)  # float64 sums of the same fp32 losses
    assert run_json(capsys, *score, "--corpus", "")["corpora"] == {}


def test_two_paths_are_neither_one_text_nor_three_splits(capsys, texts, model):
    capsys.readouterr()
    said = refused(capsys, "score", model, "--corpus", f"file:{texts / 'train.txt'},wikitext")
    assert "file: takes one path, or three" in said and "train.txt,wikitext'" in said
    assert "at least one --corpus" in refused(
        capsys, "recover", "--full", model, "--compressed", model, "--prompt", "p", "--corpus", ""
    )
    assert "--corpora, --tasks or both" in refused(
        capsys, "transfer", "--prompts", "p", "--targets", model, "--corpora", ""
    )
    code, _, err = run(capsys, "reproduce", "table1", "--corpus", "a,b", "--corpus", "c,d")
    assert code == 2 and "one to three names" in err
