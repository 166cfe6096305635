"""The table of arms: every arm with its parts is built, no control passes for another, fingerprints tell arms apart."""

from itertools import combinations

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.formats import checkpoint, gptq
from ctplab.formats.loading import load
from ctplab.learning.rows import initial_rows
from ctplab.prompts import arms, prefix


def ids_of(found: list[ctp.Arm]) -> dict[str, tuple[int, ...] | None]:
    return {arm.name: arm.prefix.ids for arm in found if arm.name in ("bos", "random", "init", "text")}


@pytest.mark.parametrize("k", [1, 2, 16])
def test_no_two_controls_are_the_same_rows(llama, tokenizer, web, k):
    """For every seed of the controls and of the untrained rows; at k = 1 chance alone would make some equal."""
    for seed in range(12):
        for init_seed in (seed, seed + 1, seed + 2):
            spec = ctp.PromptSpec(tokens=k, seed=init_seed)
            start = initial_rows(llama, spec)
            found = ctp.arms(
                llama, llama, soft=start, controls=True, tokenizer=tokenizer, initial=start, text=web.train.stream,
                seed=seed,
            )  # fmt: skip
            rows = ids_of(found)
            random, others = rows.pop("random"), rows.values()
            assert random not in others, (seed, init_seed, rows)


def test_the_random_control_of_a_model_alone_is_not_the_untrained_prompt_of_its_seed(llama):
    for seed in range(50):
        for k in (1, 3, 100):
            control = ctp.control(llama, "random", k=k, seed=seed)
            start = initial_rows(llama, ctp.PromptSpec(tokens=k, seed=seed))
            assert control.prefix.k == k and not torch.equal(control.prefix.rows, start.rows)


def test_a_vocabulary_too_small_for_controls_is_refused():
    model = tiny("llama")
    model.set_input_embeddings(torch.nn.Embedding(1, 32))
    with pytest.raises(ctp.InputError, match="no other control has"):
        ctp.control(model, "random", k=1)


def test_what_cannot_be_built_says_what_it_needs(llama, tokenizer):
    assert [arm.name for arm in ctp.arms(llama, llama)] == ["full", "compressed"]
    for name, kind in arms.KINDS.items():
        given = arms.Parts()
        with pytest.raises(ctp.InputError, match=f"'{name}' needs {kind.needs}".replace("+", r"\+")):
            arms.build(name, given)
    with pytest.raises(ctp.InputError, match="unknown arm 'best'; known are full, compressed"):
        arms.build("best", arms.Parts())
    with pytest.raises(ctp.InputError, match="bos and random are"):
        ctp.control(llama, "init")
    assert ctp.control(llama, "bos", tokenizer=tokenizer).prefix.ids == (tokenizer.bos_token_id,)


def test_every_arm_has_a_sentence_and_a_colour_of_its_own():
    colours = [kind.colour for kind in arms.KINDS.values()]
    assert len(set(colours)) == len(colours) and all(kind.says for kind in arms.KINDS.values())
    assert {*arms.USUAL, *arms.CONTROLS} <= set(arms.KINDS)


def test_models_to_compare_share_a_dtype(llama):
    with pytest.raises(ctp.InputError, match="bfloat16 and float32: load both in one"):
        ctp.arms(llama, tiny("llama").bfloat16())
    assert arms.check_dtypes([llama, llama]) == "float32"


def test_one_fingerprint_tells_packed_and_gptq_models_apart(tokenizer, web, quiet, tmp_path):
    """Packed codes are buffers, an adapter's matrices are parameters: none may be passed over."""
    base = tiny("opt")  # 32 x 32 at least, as GPTQ's words need
    models = {"dense": base}
    for name, spec in {
        "w4": ctp.CompressionSpec(bits=4, group_size=16),
        "w4-ao": ctp.CompressionSpec(bits=4, group_size=16, act_order=True),
        "w4-sym": ctp.CompressionSpec(bits=4, group_size=16, symmetric=True),
    }.items():
        small, report = ctp.compress(base, web.train.windows[:4], spec, **quiet)
        checkpoint.save(small, tmp_path / name, tokenizer, report, "tiny")
        models[name] = load(tmp_path / name, device="cpu")[0]
        models[f"{name} packed"] = load(tmp_path / name, device="cpu", packed=True)[0]
        gptq.export(tmp_path / name, tmp_path / f"{name}-gptq", "gptq_v2")
        models[f"{name} gptq"] = load(tmp_path / f"{name}-gptq", device="cpu", packed=True)[0]
    keys = {name: ctp.Arm("x", model, prefix.none(model)).fingerprint for name, model in models.items()}
    different = [name for name in keys if not name.endswith("gptq")]
    assert all(keys[a] != keys[b] for a, b in combinations(different, 2))
    assert len({keys[f"{name} gptq"] for name in ("w4", "w4-ao", "w4-sym")}) == 3
    rows = prefix.random_rows(base, 3)
    assert ctp.Arm("x", base, rows).fingerprint not in keys.values()


def test_an_adapter_changes_the_fingerprint_and_goes_with_it(llama):
    pytest.importorskip("peft", reason="LoRA needs PEFT (pip install 'ctplab[baselines]')")
    arm = ctp.Arm("x", llama, prefix.none(llama))
    before = arm.fingerprint
    adapter = ctp.LoraAdapter(llama, ctp.LoraSpec(r=2))
    fresh = arm.fingerprint
    with torch.no_grad():
        next(iter(adapter.parameters.values())).add_(1)
    assert len({before, fresh, arm.fingerprint}) == 3
    adapter.remove()
    assert arm.fingerprint == before
