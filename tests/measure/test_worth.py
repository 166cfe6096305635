"""What each row is worth: against a plain loop, against transformers' own attention, and what must hold exactly."""

import pytest
import torch
from commands import refused, run, run_json
from conftest import FAMILIES, GROUPED, MORE_FAMILIES, SHAPE, any_tiny, from_config
from transformers import MistralConfig

import ctplab as ctp
from ctplab.demo.embedded import SHOWCASE
from ctplab.disk import data_dir, kept_in
from ctplab.formats import prompt_file
from ctplab.measure.attention_mass import AttentionMass, attention_mass
from ctplab.measure.worth import RowWorth, in_words, row_worth
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts import prefix

EAGER = 2e-5
"""Both compute in fp32, with sums in other orders; shares are at most 1."""


@pytest.fixture
def arm(llama):
    return ctp.Arm("soft", llama, prefix.random_rows(llama, 4))


def test_worth_is_the_difference_of_two_plain_losses(arm, web):
    windows = web.test.windows[:3]
    found = list(row_worth(arm, windows))
    assert [each.row for each in found] == [0, 1, 2, 3]

    def loss(ids: list[int]) -> float:
        front = torch.tensor(ids)[None].expand(3, -1)
        logits = arm.model(torch.cat([front, windows], 1), use_cache=False).logits[:, len(ids) : -1].double()
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))

    ids = list(arm.prefix.ids)
    for row in range(4):
        wanted = loss(ids[:row] + ids[row + 1 :]) - loss(ids)
        assert found[row].worth.value == pytest.approx(wanted, abs=1e-5)  # an fp32 model
        assert found[row].worth.low <= found[row].worth.value <= found[row].worth.high


def test_a_stopped_measurement_goes_on(arm, web, tmp_path):
    keep, asked = kept_in(tmp_path), []

    def counted(name, key, compute):
        return keep(name, key, lambda: (asked.append(name), compute())[1])

    steps = row_worth(arm, web.test, limit=2, keep=counted)
    first = [next(steps), next(steps)]
    steps.close()
    found = list(row_worth(arm, web.test, limit=2, keep=counted))
    assert asked == ["whole", "without-0", "without-1", "without-2", "without-3"]
    assert found[:2] == first and found == list(row_worth(arm, web.test, limit=2))


def test_rows_that_are_left_out_of_keys_and_values(llama, web):
    """Leaving out the last row of compiled rows is leaving out the row: nothing but the text stands behind it."""
    from ctplab.learning.keys_values import intact

    rows = prefix.random_rows(llama, 5)
    pair = ctp.Arm("rows", llama, rows), ctp.Arm("kv", llama, intact(llama, rows))
    of_rows, of_kv = (list(row_worth(each, web.test, rows=[4, 0], limit=2)) for each in pair)
    assert of_kv[0].worth.value == pytest.approx(of_rows[0].worth.value, abs=1e-6)
    assert of_kv[1].worth.value != pytest.approx(of_rows[1].worth.value, abs=1e-6)  # the others keep their positions


def test_nothing_to_leave_out(llama, web):
    with pytest.raises(ctp.InputError, match="1 rows has none"):
        next(row_worth(ctp.Arm("soft", llama, prefix.random_rows(llama, 1)), web.test))
    with pytest.raises(ctp.InputError, match="some of 0 to 3"):
        prefix.only(prefix.random_rows(llama, 4), [4])


def eager_mass(model, rows, windows) -> torch.Tensor:
    """(layers, k): the same through transformers, which gives every attention matrix away."""
    front = rows.to(embeddings(model).dtype)[None].expand(len(windows), -1, -1)
    inputs = torch.cat([front, embed(model, windows)], 1)
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        layers = model(inputs_embeds=inputs, output_attentions=True, use_cache=False).attentions
    finally:
        model.config._attn_implementation = before
    k = len(rows)
    return torch.stack([a[:, :, k:-1, :k].double().mean((0, 1, 2)) for a in layers])


WATCHED = ("llama", "opt", "gpt2", "neox", "MistralConfig", "Qwen2Config", "Qwen3Config", "GemmaConfig")
"""Families whose attention must be watched, so that a refusal of all would not pass for a success."""


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_mass_is_that_of_eager_attention_or_refused(family, web):
    model = any_tiny(family)
    arm = ctp.Arm("soft", model, prefix.random_rows(model, 6))
    windows = web.test.windows[:5]
    try:
        found = attention_mass(arm, windows, batch=2)
    except ctp.InputError as error:
        assert "\n" not in str(error) and family not in WATCHED, family
        return
    torch.testing.assert_close(found.rows, eager_mass(model, arm.prefix.rows, windows), rtol=0, atol=EAGER)
    assert (found.prompt < 1).all() and (found.rows > 0).all()


def test_mass_in_a_sliding_window_that_is_shorter_than_the_text(web):
    model = from_config(MistralConfig(**{**SHAPE, **GROUPED, "sliding_window": 16}))
    arm, windows = ctp.Arm("soft", model, prefix.random_rows(model, 6)), web.test.windows[:2]
    found = attention_mass(arm, windows)
    torch.testing.assert_close(found.rows, eager_mass(model, arm.prefix.rows, windows), rtol=0, atol=EAGER)


def test_mass_in_pieces_and_with_masks(arm, web, monkeypatch):
    windows = web.test.windows[:3]
    whole = attention_mass(arm, windows)
    monkeypatch.setattr("ctplab.measure.attention_mass.SCORES", 500)
    torch.testing.assert_close(attention_mass(arm, windows).rows, whole.rows, rtol=1e-6, atol=1e-9)  # fp32 sums
    mask = torch.zeros(windows.numel(), dtype=torch.bool)
    mask[[5, 9]] = True
    split = ctp.Split("some", "test", windows.flatten(), windows.shape[1], mask)
    two = attention_mass(arm, split)
    first = [attention_mass(arm, windows[:1, : t + 1]).rows * t for t in (4, 5, 8, 9)]
    wanted = (first[1] - first[0] + first[3] - first[2]) / 2  # sums over t targets, so a difference is one query
    torch.testing.assert_close(two.rows, wanted, rtol=1e-4, atol=1e-6)
    assert two.even == pytest.approx((1 / (4 + 5) + 1 / (4 + 9)) / 2)


def test_mass_behind_keys_that_nothing_matches(llama, web):
    """Zero queries look at everything alike: then every row gets the even share."""
    for name, weight in llama.named_parameters():
        if "q_proj" in name:
            weight.zero_()
    found = attention_mass(ctp.Arm("soft", llama, prefix.random_rows(llama, 4)), web.test, limit=2)
    torch.testing.assert_close(found.rows, torch.full_like(found.rows, found.even), rtol=1e-5, atol=0)
    assert AttentionMass.from_json(found.to_json()).even == found.even


def test_mass_of_no_rows(llama, web):
    with pytest.raises(ctp.InputError, match="no prompt rows"):
        attention_mass(ctp.Arm("compressed", llama, prefix.none(llama)), web.test, limit=1)


def test_words_count_what_chance_would_give():
    rows = [RowWorth(0, ctp.Interval(0.2, 0.1, 0.3)), RowWorth(1, ctp.Interval(0.0, -0.1, 0.1))]
    lines = in_words(rows, ctp.Interval(0.5, 0.4, 0.6))
    assert lines[0].startswith("Of 2 rows 1 help, 0 harm, and of 1 one cannot tell.")
    assert lines[1].endswith("Rows stand in for each other.")
    for gain, told in ((0.2, "cannot be told."), (0.05, "Rows need each other.")):  # the worths add up to 0.2
        assert in_words(rows, ctp.Interval(gain, gain - 0.05, gain + 0.05))[1].endswith(told)


def test_on_the_command_line(capsys, tmp_path):
    small, prompt = data_dir() / SHOWCASE, tmp_path / "prompt"
    saved = ctp.load_prompt(data_dir() / "prompt")
    prompt_file.write(prefix.only(saved.prefix, range(3)), None, {**saved.info}, prompt)
    few = ("--windows", "2", "--seq-len", "48", "--out", tmp_path / "kept")
    found = run_json(capsys, "worth", prompt, "--model", small, *few)
    assert [row["row"] for row in found["rows"]] == [0, 1, 2]
    assert len(found["attention"]["rows"]) == 2 and len(found["attention"]["rows"][0]) == 3
    assert len(list((tmp_path / "kept").glob("without-*.json"))) == 3
    code, out, _ = run(capsys, "worth", prompt, "--model", small, *few, "--figure", tmp_path / "rows.png")
    assert code == 0 and found["words"][0] in out and (tmp_path / "rows.png").stat().st_size > 1000
    some = run_json(capsys, "worth", prompt, "--model", small, *few, "--rows", "2,0")
    assert [row["worth"] for row in some["rows"]] == [found["rows"][i]["worth"] for i in (2, 0)]
    assert len(some["words"]) == 1  # what all rows add up to is not known
    assert "from 0 to 2" in refused(capsys, "worth", prompt, "--model", small, *few, "--rows", "3")
