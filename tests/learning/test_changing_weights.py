"""Weights that change while a prompt is learned: noise of the rounding error's size, and compressions drawn anew."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.learning.noise import error_sizes, noisy
from ctplab.learning.redraw import Redraw, calibration
from ctplab.learning.rows import learn_steps, start
from ctplab.learning.turns import Turns
from ctplab.models.anatomy import block_matrices
from ctplab.models.fingerprints import tensor_fingerprint, weights_fingerprint
from ctplab.runs.controls import recipe_of

SPEC = ctp.PromptSpec(tokens=5, steps=8, batch=4, lr=0.05, warmup=2, evaluate_every=2, validation_windows=4)
W3 = ctp.CompressionSpec(bits=3)


@pytest.fixture
def pair(llama, web, quiet):
    """The full model and a compression of it."""
    return llama, ctp.compress(llama, web.train.sample(8, 0), W3, **quiet)[0]


def every_bit(model):
    return tensor_fingerprint(*model.parameters(), *model.buffers())


def test_sizes_are_the_errors_root_mean_squares(pair):
    full, small = pair
    sizes = error_sizes(small, full)
    for size, a, b in zip(sizes, block_matrices(small), block_matrices(full), strict=True):
        assert size == pytest.approx(float((a.double() - b.double()).square().mean().sqrt()), rel=1e-5)  # fp32 sums


def test_noise_has_that_size_and_leaves_no_trace(pair):
    full, small = pair
    before, sizes = every_bit(small), error_sizes(small, full)
    kept = [matrix.clone() for matrix in block_matrices(small)]
    with noisy(small, sizes, 7):
        for size, now, then in zip(sizes, block_matrices(small), kept, strict=True):
            added = now - then
            assert float(added.std()) == pytest.approx(size, rel=4 / (2 * added.numel()) ** 0.5)  # 4 standard errors
        first = every_bit(small)
    assert every_bit(small) == before
    with pytest.raises(ZeroDivisionError), noisy(small, sizes, 7):
        assert every_bit(small) == first, "one seed, one noise"
        raise ZeroDivisionError
    assert every_bit(small) == before
    with noisy(small, sizes, 8):
        assert every_bit(small) != first


def test_every_step_has_noise_of_its_own_and_validation_none(pair, web, quiet):
    full, small = pair
    before = every_bit(small)
    plain = ctp.learn(small, web.train, web.validation, SPEC, teacher=full, **quiet)
    learned = ctp.learn(small, web.train, web.validation, replace(SPEC, noise=1.0), teacher=full, **quiet)
    assert every_bit(small) == before
    assert learned.steps[0].loss != plain.steps[0].loss
    arm = ctp.Arm("soft", small, learned.prefix)
    score = ctp.perplexity(arm, web.validation.windows[:4])
    assert score.mean == pytest.approx(learned.best_validation, rel=1e-6)  # sums in another order
    turns = Turns([small], None, full, replace(SPEC, noise=1.0))
    seen = set()
    for step in range(3):
        with turns.on(step):
            seen.add(every_bit(small))
    assert len(seen) == 3 and before not in seen


def test_a_tiny_noise_changes_little_and_the_gradient_sees_it(pair, web, quiet):
    """The loss is a smooth function of the weights: a tenth of a tiny noise moves it by about a tenth."""
    full, small = pair

    def first_loss(noise: float) -> float:
        spec = replace(SPEC, steps=1, noise=noise)
        return ctp.learn(small, web.train, web.validation, spec, teacher=full, **quiet).steps[0].loss

    zero, some, more = first_loss(0.0), first_loss(0.01), first_loss(0.1)
    assert 0 < abs(some - zero) < abs(more - zero)


@pytest.mark.parametrize("noise, redrawn", [(0.5, False), (0.0, True), (0.5, True)])
def test_killed_and_resumed_gives_the_same_curve(pair, web, tmp_path, noise, redrawn, quiet):
    full, small = pair
    spec = replace(SPEC, noise=noise, kl=0.5)

    def anew():
        return Redraw(full, [web.train], W3, every=2, samples=4, seed=9) if redrawn else None

    whole = ctp.learn(small, web.train, web.validation, spec, teacher=full, redraw=anew(), **quiet)
    state = tmp_path / "state.safetensors"
    part = start(small, spec)
    steps = learn_steps(small, web.train, web.validation, spec, teacher=full, state=state, result=part, redraw=anew())
    for step in steps:
        if step.step == 4:  # after the validation at step 3: the third model is drawn again on resuming
            steps.close()
            break
    rest = ctp.learn(small, web.train, web.validation, spec, teacher=full, state=state, redraw=anew(), **quiet)
    assert [s.loss for s in rest.steps] == [s.loss for s in whole.steps]
    assert rest.prefix.rows.equal(whole.prefix.rows)
    assert weights_fingerprint(small) == every_bit(small)


def test_a_drawn_model_is_the_compression_of_its_own_windows(pair, web, quiet):
    full, _ = pair
    before = every_bit(full)
    redraw = Redraw(full, [web.train, web.validation], W3, every=3, samples=4, seed=5)
    assert [redraw.at(turn) for turn in (0, 1, 2, 3, 4)] == [True, False, False, True, False]
    windows = web.validation.sample(2, 6)  # copy 1: the second text, half the windows, the next seed
    assert calibration([web.train, web.validation], 1, 4, 5).equal(windows)
    its, _ = ctp.compress(full, windows, W3, **quiet)
    assert every_bit(redraw.model) == every_bit(its) and every_bit(full) == before
    assert [redraw.draws(turns) for turns in (0, 1, 3, 4, 6)] == [0, 1, 1, 2, 2]


def test_drawn_models_take_every_second_turn(pair, web):
    full, small = pair
    redraw = Redraw(full, [web.train], W3, every=1, samples=2, seed=1)
    turns, seen = Turns([small], redraw, full, SPEC), []
    for step in range(4):
        with turns.on(step) as number:
            seen.append((number, every_bit(turns.models[number])))
    assert [number for number, _ in seen] == [0, 1, 0, 1]
    assert seen[0] == seen[2] and seen[1] != seen[3]


def test_another_redraw_is_another_run(pair, web, tmp_path, quiet, caplog):
    full, small = pair
    state = tmp_path / "state.safetensors"
    for seed in (1, 2):
        redraw = Redraw(full, [web.train], W3, samples=2, seed=seed)
        spec = replace(SPEC, steps=2)
        ctp.learn(small, web.train, web.validation, spec, state=state, redraw=redraw, **quiet)
    assert "another redraw" in caplog.text


def test_refusals(pair, web, tokenizer, tmp_path, quiet):
    full, small = pair
    noise = replace(SPEC, noise=1.0)
    with pytest.raises(ctp.InputError, match="full model itself"):
        ctp.learn(small, web.train, web.validation, noise, **quiet)
    few = replace(web.validation, stream=web.validation.stream[: 4 * 48])
    cached = ctp.cached_teacher(full, few, tmp_path / "cache", k=4)
    with pytest.raises(ctp.InputError, match="full model itself"):
        ctp.learn(small, few, few, replace(noise, kl=1.0), teacher=cached, **quiet)
    with pytest.raises(ctp.InputError, match="their matrices differ"):
        error_sizes(small, tiny("gpt2"))
    found, report = ctp.compress(full, web.train.sample(4, 0), W3, **quiet)
    ctp.save(found, tmp_path / "w3", tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path / "w3", device="cpu", packed=True)
    with pytest.raises(ctp.InputError, match="packed=True"):
        ctp.learn(packed, web.train, web.validation, noise, teacher=full, **quiet)
    with pytest.raises(ctp.InputError, match="noise must not be negative"):
        replace(SPEC, noise=-1.0)


def test_a_study_measures_noise_by_its_full_model(pair, web, tokenizer, tmp_path, quiet):
    """Without KL too; and the recipe of the controls has no noise, because they have no rounding error."""
    full, small = pair
    assert replace(SPEC, noise=1.0).needs_full and replace(SPEC, kl=0.1).needs_full and not SPEC.needs_full
    study = ctp.Study(ctp.Store(tmp_path, "tiny"), full, tokenizer, quiet["progress"])
    spec = replace(SPEC, steps=2, noise=1.0)
    learned = ctp.learn(small, web.train, web.validation, spec, teacher=full, **quiet)
    saved = study.prompt("w3", "noisy", small, web.train, web.validation, spec)
    assert saved.prefix.rows.equal(learned.prefix.rows)
    assert recipe_of(saved, tokenizer)[0] == replace(spec, noise=0.0)


def test_zeros_of_a_pruned_model_get_noise_and_are_zeros_again(llama, web, quiet):
    small, _ = ctp.compress(llama, web.train.sample(4, 0), ctp.CompressionSpec(sparsity=0.5), **quiet)
    zeros = [matrix == 0 for matrix in block_matrices(small)]
    with noisy(small, error_sizes(small, llama), 0):
        assert all((m[z] != 0).any() for m, z in zip(block_matrices(small), zeros, strict=True))
    assert all(torch.equal(m == 0, z) for m, z in zip(block_matrices(small), zeros, strict=True))
