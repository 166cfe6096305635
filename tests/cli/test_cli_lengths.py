"""What is too long is refused with a number, and the command works with that number."""

import re

import pytest
from commands import refused, run
from conftest import tiny

import ctplab as ctp
from ctplab.cli import main

LIMIT = 96
TEXT = "The capital of France is Paris, and the river that runs through it is the Seine. "


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A model of 96 positions, compressed, with a text and two prompts: one of 6 rows and one of 4."""
    found, model = tmp_path_factory.mktemp("lengths"), tiny("llama")
    model.config.max_position_embeddings = LIMIT
    model.save_pretrained(found / "full")
    tokenizer.save_pretrained(found / "full")
    (found / "t.txt").write_text("\n\n".join(f"{TEXT} {i}" for i in range(400)))
    text = f"file:{found / 't.txt'}"
    compress = ("compress", found / "full", "--bits", 4, "--calibration", text, "--samples", 4, "--seq-len", 16)
    assert main([str(a) for a in (*compress, "--out", found / "small", "--json")]) == 0
    for k, name in ((4, "short"), (6, "prompt")):
        learn = ("learn", found / "small", "--corpus", text, "--tokens", k, "--steps", 1, "--batch", 2)
        assert main([str(a) for a in (*learn, "--seq-len", 16, "--out", found / name, "--json")]) == 0
    return found


def command(home, *words):
    return [str(word).format(h=home) for word in words]


WINDOWS = ("--windows", 2, "--seq-len")
CORPUS = ("--corpus", "file:{h}/t.txt")
PAIR = ("--full", "{h}/full", "--compressed", "{h}/small")
#: Every command that reads windows behind a prompt of 6 rows, up to the option that takes their length.
READS_WINDOWS = {
    "learn": ("learn", "{h}/small", *CORPUS, "--tokens", 6, "--steps", 1, "--batch", 2, "--out", "{h}/l", "--seq-len"),
    "tune": ("tune", "{h}/small", *CORPUS, "--what", "norms,soft", "--tokens", 6, "--steps", 1, "--batch", 2,
             "--out", "{h}/u", "--seq-len"),
    "score": ("score", "{h}/small", "--prompt", "{h}/prompt", *CORPUS, *WINDOWS),
    "score-against": ("score", "{h}/small", "--prompt", "{h}/prompt", "--against", "{h}/full", *CORPUS, *WINDOWS),
    "worth": ("worth", "{h}/prompt", "--model", "{h}/small", "--rows", "0", *CORPUS, *WINDOWS),
    "cut": ("cut", "{h}/prompt", "--model", "{h}/small", "--keep", "2", "--out", "{h}/c", *CORPUS, *WINDOWS),
    "choose": ("choose", "{h}/small", "--prompts", "{h}/short", "{h}/prompt", *CORPUS, *WINDOWS),
    "transfer": ("transfer", "--prompts", "{h}/short", "{h}/prompt", "--targets", "{h}/small",
                 "--corpora", "file:{h}/t.txt", *WINDOWS),
    "recover": ("recover", *PAIR, "--prompt", "{h}/prompt", "--skip", "full+own,lora", *CORPUS, "--out", "{h}/r",
                *WINDOWS),
    "inspect": ("inspect", "{h}/prompt", "--model", "{h}/small", *CORPUS, "--seq-len"),
}  # fmt: skip


@pytest.mark.parametrize("name", READS_WINDOWS)
def test_the_length_that_is_proposed_works(name, home, capsys):
    words = command(home, *READS_WINDOWS[name])
    line = refused(capsys, *words, 200)
    found = re.search(r"sequence length of at most (\d+)", line)
    assert found and int(found[1]) >= 2, line
    code, _, err = run(capsys, *words, found[1])
    assert code == 0, err


ANSWERS = ("--max-new-tokens", 200)


@pytest.mark.parametrize(
    "words",
    [
        ("compare", *PAIR, "--prompt", "{h}/prompt", "--hard-prompt", "Be careful", TEXT),
        ("generate", "{h}/small", "--prompt", "{h}/prompt", TEXT),
        ("compare", *PAIR, "--prompt", "{h}/prompt", "--hard-prompt", "Be careful", "--questions", "{h}/q.txt"),
    ],
    ids=["compare", "generate", "questions"],
)
def test_the_number_of_new_tokens_that_is_proposed_works(words, home, capsys):
    (home / "q.txt").write_text("What is the capital of France?\nWhat is it?\n")
    words = command(home, *words, "--max-new-tokens")
    line = refused(capsys, *words, 200)
    found = re.search(r"ask for at most (\d+) new tokens", line)
    assert found and int(found[1]) > 1, line
    code, _, err = run(capsys, *words, found[1])
    assert code == 0, err


def test_the_text_that_is_proposed_works(home, capsys):
    words = command(home, "latency", "{h}/small", "--tokens", "0,6", "--repeats", 1, "--new-tokens", 4, "--length")
    found = re.search(r"a text of at most (\d+) tokens", refused(capsys, *words, 200))
    assert found and int(found[1]) == LIMIT - 6 - 4
    assert run(capsys, *words, found[1])[0] == 0
    said = refused(capsys, *command(home, "lens", *PAIR, "--prompt", "{h}/prompt", TEXT * 9))
    assert f"a text of at most {LIMIT - 6} tokens" in said


def test_a_prompt_that_leaves_no_room_is_told_so(home, tokenizer):
    model = ctp.load(str(home / "small"))[0]
    arms = [ctp.control(model, "random", k=k) for k in (1, LIMIT - 1)]
    with pytest.raises(ctp.InputError, match=f"a prompt of {LIMIT - 1} rows leaves no room for a text"):
        ctp.lens(arms[1:], tokenizer, TEXT)
    with pytest.raises(ctp.InputError, match=f"text and new tokens together may be {LIMIT - 1}"):
        list(ctp.generate(arms[0], tokenizer, [TEXT * 9], max_new_tokens=200))
