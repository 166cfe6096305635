"""Steps to a share of the gap: exact on curves by hand, and on curves that prompts' files hold."""

import json
from dataclasses import replace

import pytest
from commands import refused, run_json

import ctplab as ctp
from ctplab.atlas.registers import document
from ctplab.measure.pace import pace
from ctplab.models.fingerprints import copy_fingerprint

COLD = [(0, 4.0), (10, 3.5), (20, 3.0), (30, 3.2)]


def test_shares_and_steps_by_hand():
    cold = pace("cold", COLD, compressed=4.0, full=2.0)
    assert cold.points == ((0, 0.0), (10, 0.25), (20, 0.5), (30, pytest.approx(0.4)))
    assert [cold.steps_to(share) for share in (0.1, 0.25, 0.3, 0.5, 0.6)] == [10, 10, 20, 20, None]
    warm = pace("warm", [(0, 3.4), (10, 2.9)], compressed=4.0, full=2.0)
    assert warm.steps_to(0.25) == 0 and cold.best == 0.5


def test_order_and_a_worse_start_do_not_matter():
    assert pace("x", reversed(COLD), 4.0, 2.0) == pace("x", COLD, 4.0, 2.0)
    assert pace("x", [(0, 5.0)], 4.0, 2.0).steps_to(0.1) is None, "worse than no prompt"


@pytest.mark.parametrize(
    "looks, compressed, message",
    [(COLD, 2.0, "did not raise"), (COLD, float("nan"), "did not"), ([], 4.0, "no learning")],
)
def test_refusals(looks, compressed, message):
    with pytest.raises(ctp.InputError, match=message):
        pace("x", looks, compressed, full=2.0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tokenizer):
    """The embedded model at 2 bits, a prompt from random rows, and one that goes on from it."""
    root = tmp_path_factory.mktemp("pace")
    paths = [root / f"{split}.txt" for split in ("train", "validation", "test")]
    for path in paths:
        path.write_text("\n\n".join(document("atlas-web", path.stem, i) for i in range(30)))
    text = ctp.corpus("file:" + ",".join(map(str, paths)), tokenizer, 48)
    full, _ = ctp.load("atlas", device="cpu")
    small, report = ctp.compress(full, text.train.sample(16, 0), ctp.CompressionSpec(bits=2, group_size=32))
    ctp.save(small, root / "w2", tokenizer, report, "atlas")
    spec = ctp.PromptSpec(tokens=8, steps=6, batch=4, lr=0.1, warmup=2, evaluate_every=2, validation_windows=4)
    cold = ctp.learn(small, text.train, text.validation, spec)
    warm = ctp.learn(small, text.train, text.validation, replace(spec, init="prompt"), earlier=cold.prefix)
    for name, each in (("cold", cold), ("warm", warm)):
        about = {"corpus": text.name, "seq_len": 48, "corpus_fingerprint": text.train.fingerprint}
        ctp.save_prompt(each, root / name, spec, small, tokenizer, base="atlas", tag="w2-g32", **about)
    return root, full, small, cold, text.validation.windows[:4]


def test_the_curve_in_the_file_is_the_share_that_recovery_gives(learned, tokenizer):
    """The kept rows, scored on the same windows by the ordinary way, close what the best look says."""
    root, full, small, cold, windows = learned
    saved = ctp.load_prompt(root / "cold")
    (found,) = ctp.paces(full, small, {"cold": saved}, tokenizer)
    assert [step for step, _ in found.points] == [0, 2, 4, 6]
    arms = ctp.arms(full=full, compressed=small, soft=cold.prefix)
    assert found.best == pytest.approx(ctp.recover(arms, windows)["soft"].recovery.value, abs=1e-5)  # fp32 sums
    untrained = ctp.arms(full=full, compressed=small, soft=cold.initial)
    assert found.points[0][1] == pytest.approx(ctp.recover(untrained, windows)["soft"].recovery.value, abs=1e-5)


def test_the_command(learned, capsys, tmp_path):
    root, _, small, *_ = learned
    command = ("pace", "--full", "atlas", "--compressed", root / "w2", "--prompts", root / "cold", root / "warm")
    command += ("--device", "cpu")  # as the models were that they were learned through
    found = run_json(capsys, *command, "--reach", "0.01", "0.99", "--figure", tmp_path / "pace.png")["prompts"]
    assert [len(each["points"]) for each in found] == [4, 4] and found[0]["steps_to"]["0.99"] is None
    assert found[1]["points"][0][1] == pytest.approx(found[0]["best"], abs=1e-5), "it starts where the other was best"
    first = next((step for step, share in found[1]["points"] if share >= 0.01), None)
    assert found[1]["steps_to"]["0.01"] == first and (tmp_path / "pace.png").stat().st_size > 1000
    assert "between 0 and 1" in refused(capsys, *command, "--reach", "50")
    assert "not learned through these weights" in refused(capsys, *command[:3], "--compressed", "atlas", *command[5:])
    info = json.loads((root / "cold" / "prompt.json").read_text())
    assert info["copies"] == [copy_fingerprint(small)]
    (root / "cold" / "prompt.json").write_text(json.dumps(info | {"curve": []}))
    assert "no learning curve" in refused(capsys, *command)
    (root / "cold" / "prompt.json").write_text(json.dumps(info | {"corpus_fingerprint": "0"}))
    assert "not the same text" in refused(capsys, *command)
