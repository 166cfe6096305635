"""One prompt an input: the choice, what counts as a target, and that no choice beats the best one."""

import pytest
import torch
from commands import refused, run, run_json

import ctplab as ctp
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir, kept_in
from ctplab.formats.prompt_file import shorter, write
from ctplab.measure.chosen import behind, choose, chosen
from ctplab.prompts import prefix


@pytest.fixture
def arms(model):
    return [ctp.Arm(f"p{seed}", model, prefix.random_rows(model, 3, seed)) for seed in range(3)]


def test_the_prompt_with_the_least_loss_on_the_first_tokens_is_taken(arms, web):
    found, look = chosen(arms, web.test, look=8, limit=5), 8
    for i, window in enumerate(web.test.windows[:5]):
        losses = []
        for arm in arms:
            ids = torch.cat([torch.tensor(arm.prefix.ids), window])[None]
            logits = arm.model(ids, use_cache=False).logits[0, 3:-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        first = [float(each[: look - 1].sum()) for each in losses]  # tokens 1 .. look - 1
        pick = first.index(min(first))
        assert found.picks[i] == pick
        assert float(found.scores.nll[i]) == pytest.approx(
            float(losses[pick][look - 1 :].sum()), rel=1e-5
        )  # fp32 model
        assert float(found.best.nll[i]) == pytest.approx(min(float(e[look - 1 :].sum()) for e in losses), rel=1e-5)
        index, given = choose(arms, window[:look])
        assert index == pick and given == pytest.approx(first, rel=1e-5)


def test_same_targets_for_every_arm(arms, web):
    found = chosen(arms, web.test, look=8, limit=5)
    rest = behind(web.test, 8)
    for arm in arms:
        beside = ctp.window_scores(arm, rest, limit=5)
        assert torch.equal(beside.nll, found.alone[arm.name].nll)
        beside.check_same_windows(found.scores, found.best)
    assert found.scores.score.n_tokens == 5 * (48 - 8)
    assert sum(found.counts.values()) == 5 and list(found.counts) == ["p0", "p1", "p2"]
    assert (found.best.nll <= found.scores.nll).all()


def test_masks_of_a_text_stay(web):
    mask = torch.arange(len(web.test.stream)) % 2 == 0
    split = ctp.Split("some", "test", web.test.stream, 48, mask)
    assert torch.equal(behind(split, 8).window_masks[0], (torch.arange(48) >= 8) & (torch.arange(48) % 2 == 0))


def test_a_prompt_beside_itself_changes_nothing(llama, web, tmp_path):
    rows = prefix.random_rows(llama, 3)
    twins = [ctp.Arm(name, llama, rows) for name in ("a", "b")]
    found = chosen(twins, web.test, look=4, limit=3, keep=kept_in(tmp_path))
    assert torch.equal(found.scores.nll, found.best.nll) and found.counts == {"a": 3, "b": 0}


@pytest.mark.parametrize("look", [1, 48])
def test_nothing_to_look_at_or_nothing_left(arms, web, look):
    with pytest.raises(ctp.InputError, match="from 2 to 47"):
        chosen(arms, web.test, look=look)
    with pytest.raises(ctp.InputError, match="two tokens"):
        choose(arms, web.test.windows[0, :1])
    with pytest.raises(ctp.InputError, match="two prompts"):
        chosen(arms[:1], web.test)


def test_on_the_command_line(capsys, tmp_path):
    small, whole = data_dir() / SHOWCASE, ctp.load_prompt(data_dir() / "prompt")
    for name, rows in (("a", range(3)), ("b", range(3, 6)), ("long", range(6))):
        part = shorter(whole, rows)
        write(part.prefix, part.initial, part.info, tmp_path / name)
    command = ("choose", small, "--prompts", tmp_path / "a", tmp_path / "b", "--beside", tmp_path / "long")
    few = ("--windows", "3", "--seq-len", "48", "--corpus", "atlas-web,atlas-wiki", "--look", "8")
    found = run_json(capsys, *command, *few, "--full", "atlas", "--out", tmp_path / "kept")
    assert list(found["corpora"]) == ["atlas-web", "atlas-wiki", "all"]
    everything = found["corpora"]["all"]
    names = [str(tmp_path / "a"), str(tmp_path / "b"), "chosen", "best choice", "full", "none", str(tmp_path / "long")]
    assert list(everything["arms"]) == names
    assert sum(everything["chosen"].values()) == 6
    assert everything["arms"]["none"]["recovery"]["value"] == 0
    assert everything["arms"]["best choice"]["ppl"] <= everything["arms"]["chosen"]["ppl"]
    assert found["milliseconds"]["choice"] > 0
    code, out, _ = run(capsys, *command, *few)
    assert code == 0 and "best choice" in out
    assert "./none" in refused(capsys, "choose", small, "--prompts", "none", tmp_path / "a")
    assert "--look takes numbers from 2 to 47" in refused(capsys, *command, *few[:-1], "48")
