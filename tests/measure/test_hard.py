"""Hard prompts: presets, candidate files, the ranking against no prompt, and resuming after a kill."""

import pytest
import torch
from conftest import scored
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
    losses = 100 * torch.rand(400)
    plain = scored(losses, 10)
    same = ctp.change(scored(losses + 5, 10), plain)
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-4)  # fp32 sums of up to 105
    noisy = ctp.change(scored(losses + 10 * torch.randn(400), 10), plain)
    width = (noisy.high - noisy.low) / 2  # 1.96 sd / sqrt(N), to the bootstrap's own noise
    assert width == pytest.approx(1.96 / 400**0.5, rel=0.2)


def test_goes_on_after_a_kill_with_the_same_ranking(llama, tokenizer, windows, tmp_path):
    scored_now, keep = [], ctp.kept_in(tmp_path / "sub")

    def killed_at_the_third(name, key, compute):
        if len(scored_now) == 2:
            raise KeyboardInterrupt
        scored_now.append(name)
        return keep(name, key, compute)

    def counted(name, key, compute):
        return keep(name, key, lambda: scored_now.append(name) or compute())

    with pytest.raises(KeyboardInterrupt):
        candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows, keep=killed_at_the_third)
    found = candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows, keep=counted)
    assert len(scored_now) == len(set(scored_now)) == 4, "a candidate was scored twice, or none"
    assert found == candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows)


def test_results_of_something_else_are_not_mixed_in(llama, tokenizer, windows, tmp_path):
    keep = ctp.kept_in(tmp_path)
    candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows, keep=keep)
    fewer = candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows[:4], keep=keep)
    assert fewer == candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows[:4])
    llama.lm_head.weight.mul_(2)
    other = candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows, keep=keep)
    assert other == candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows)
    for content in ("[]", "{", '{"result": 3}', "notes of mine"):
        for path in tmp_path.iterdir():
            path.write_text(content)
        assert candidates.rank_hard_prompts(llama, tokenizer, TEXTS, windows, keep=keep) == other
    with pytest.raises(ctp.InputError, match="the model takes 256"):
        candidates.rank_hard_prompts(llama, tokenizer, ["word " * 300], windows)
