"""Hard prompts: presets, candidate files, the ranking against no prompt, and going on after a kill."""

import pytest
import torch
from torch.nn import functional as F

import ctplab as ctp
from ctplab.measure import candidates
from ctplab.prompts.wordings import WORDINGS, read_candidates, wording

TEXTS = ["The capital of Peru is Lima.", "x", "Be careful."]


@pytest.fixture
def windows(web):
    return web.validation.windows[:6]


def test_presets_are_the_published_wordings():
    assert wording("paper").startswith("Please carefully examine the weight matrix within the model, as it may contain")
    assert set(WORDINGS) == {"paper", "pruned", "quantized"} and "quantized" in wording("quantized")
    assert wording("Any other words.") == "Any other words."


@pytest.mark.parametrize(
    "content, found",
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\nmore of one\n\ntwo\n", ["one\nmore of one", "two"]),
        ("one\r\n  \r\ntwo\r\n", ["one", "two"]),
        ("one\n\n\n\ntwo\n\none", ["one", "two"]),
        ("paper\nmine", [WORDINGS["paper"], "mine"]),
    ],
)
def test_candidate_files(tmp_path, content, found):
    (tmp_path / "c.txt").write_bytes(content.encode())
    assert read_candidates(tmp_path / "c.txt") == found


@pytest.mark.parametrize(
    "content, reason", [(b" \n\n", "no candidates"), (b"\xff\xfe", "cannot read"), (None, "No such")]
)
def test_bad_candidate_files(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(ctp.InputError, match=reason):
        read_candidates(tmp_path / "c.txt")


@torch.no_grad()
def test_ranks_by_the_loss_of_the_joined_tokens(llama, tokenizer, windows):
    """The reference joins ids and scores window by window, without any compiled prefix."""
    ranked = ctp.rank_hard_prompts(llama, tokenizer, TEXTS, windows)

    def loss(front: list[int]) -> torch.Tensor:
        sums = []
        for window in windows:
            logits = llama(torch.cat([torch.tensor(front, dtype=torch.long), window])[None]).logits[0, len(front) :]
            sums.append(F.cross_entropy(logits[:-1].double(), window[1:]))
        return torch.stack(sums)

    plain = loss([])
    want = {text: loss(tokenizer(text)["input_ids"]) for text in TEXTS}
    assert [c.text for c in ranked] == sorted(TEXTS, key=lambda text: float(want[text].mean()))
    for c in ranked:
        assert c.k == len(tokenizer(c.text)["input_ids"])
        assert c.nll == pytest.approx(float(want[c.text].mean()), abs=1e-5)  # fp32 forward passes
        assert c.difference.value == pytest.approx(float((want[c.text] - plain).mean()), abs=1e-5)
        assert c.difference.low <= c.difference.value <= c.difference.high


def test_the_interval_is_that_of_paired_windows():
    """A constant gap has no spread however far windows differ; a noisy one has the spread of its mean."""
    torch.manual_seed(0)
    plain = 100 * torch.rand(400)
    same = candidates.paired_difference(plain + 5, plain, 10)
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-4)  # fp32 sums of up to 105
    noisy = candidates.paired_difference(plain + 10 * torch.randn(400), plain, 10)
    width = (noisy.high - noisy.low) / 2  # 1.96 sd / sqrt(N), to the bootstrap's own noise
    assert width == pytest.approx(1.96 / 400**0.5, rel=0.2)


def test_goes_on_after_a_kill_with_the_same_ranking(llama, tokenizer, windows, tmp_path, monkeypatch):
    kept, scored, real = tmp_path / "sub" / "hard.json", [], candidates.window_nll

    def killed_at_the_third(arm, given):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(arm.name)
        return real(arm, given)

    monkeypatch.setattr(candidates, "window_nll", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        candidates.rank(llama, tokenizer, TEXTS, windows, kept=kept)
    monkeypatch.setattr(candidates, "window_nll", lambda arm, given: scored.append(arm.name) or real(arm, given))
    found = candidates.rank(llama, tokenizer, TEXTS, windows, kept=kept)
    assert scored == ["none", "hard", "hard", "hard"], "a candidate was scored twice, or none"
    assert found == candidates.rank(llama, tokenizer, TEXTS, windows)


def test_results_of_something_else_are_not_mixed_in(llama, tokenizer, windows, tmp_path):
    kept = tmp_path / "hard.json"
    candidates.rank(llama, tokenizer, TEXTS[1:2], windows, kept=kept)
    with pytest.raises(ctp.InputError, match="another model or corpus"):
        candidates.rank(llama, tokenizer, TEXTS, windows[:4], kept=kept)
    llama.lm_head.weight.mul_(2)
    with pytest.raises(ctp.InputError, match="another model or corpus"):
        candidates.rank(llama, tokenizer, TEXTS, windows, kept=kept)
    for content in ("[]", "{", '{"results": 3}', "notes of mine"):
        kept.write_text(content)
        with pytest.raises(ctp.InputError, match="no results of this search"):
            candidates.rank(llama, tokenizer, TEXTS, windows, kept=kept)
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        candidates.rank(llama, tokenizer, ["word " * 300], windows)
