"""Learning changes E only, follows the gradient, resumes, and never loses the best."""

import hashlib
from dataclasses import replace

import pytest
import torch

import ctplab as ctp
from ctplab.compress.linear import PackedLinear
from ctplab.prompts import files, prefix
from ctplab.prompts.learn import learn_steps, start

SPEC = ctp.PromptSpec(tokens=5, steps=12, batch=4, lr=0.05, warmup=2, evaluate_every=4, validation_windows=4)


def digest(model):
    h = hashlib.sha256()
    for parameter in model.parameters():
        h.update(parameter.detach().numpy().tobytes())
    return h.hexdigest()


def test_only_E_changes_and_the_loss_falls(model, web, quiet):
    before = digest(model)
    learned = ctp.learn(model, web.train, web.validation, replace(SPEC, steps=40), **quiet)
    assert digest(model) == before
    assert all(p.grad is None for p in model.parameters())
    first = next(s.validation for s in learned.steps if s.validation is not None)
    assert learned.best_validation <= first
    assert not torch.equal(learned.prefix.rows, learned.initial.rows)
    untrained = ctp.perplexity(ctp.Arm("init", model, learned.initial), web.validation.windows[:4])
    trained = ctp.perplexity(ctp.Arm("soft", model, learned.prefix), web.validation.windows[:4])
    assert trained.nll < untrained.nll
    assert trained.nll / trained.n_tokens == pytest.approx(learned.best_validation, rel=1e-6)


def test_the_gradient_is_the_finite_difference(web):
    from conftest import tiny

    model = tiny("llama").double()
    ids = web.train.windows[:2]
    from ctplab.prompts.kv import compile_rows, logits_after
    from ctplab.prompts.learn import _loss

    def loss(rows):
        return _loss(logits_after(model, compile_rows(model, rows), ids), ids, None, 0.0)

    rows = prefix.random_rows(model, 3).rows.double().requires_grad_(True)
    loss(rows).backward()
    step = 1e-4
    for i, j in ((0, 0), (1, 7), (2, 31)):
        nudge = torch.zeros_like(rows)
        nudge[i, j] = step
        with torch.no_grad():
            numeric = (loss(rows + nudge) - loss(rows - nudge)) / (2 * step)
        # the loss itself is summed in fp32: 1e-7 · 7 nats / 2e-4
        assert float(rows.grad[i, j]) == pytest.approx(float(numeric), rel=0.05, abs=5e-3)


def test_same_seed_same_bits(llama, web, quiet):
    runs = [ctp.learn(llama, web.train, web.validation, SPEC, **quiet) for _ in range(2)]
    assert torch.equal(runs[0].prefix.rows, runs[1].prefix.rows)
    other = ctp.learn(llama, web.train, web.validation, replace(SPEC, seed=1), **quiet)
    assert not torch.equal(runs[0].prefix.rows, other.prefix.rows)


def test_killed_and_resumed_gives_the_same_curve(llama, web, tmp_path, quiet):
    whole = ctp.learn(llama, web.train, web.validation, SPEC, **quiet)
    state = tmp_path / "state.safetensors"
    broken = learn_steps(llama, web.train, web.validation, SPEC, state=state)
    for _ in range(9):  # killed between two validations: goes on from step 8
        next(broken)
    broken.close()
    resumed = ctp.learn(llama, web.train, web.validation, SPEC, state=state, **quiet)
    assert torch.equal(resumed.prefix.rows, whole.prefix.rows)
    assert [(s.step, s.loss, s.validation) for s in resumed.steps] == [
        (s.step, s.loss, s.validation) for s in whole.steps
    ]
    with pytest.raises(ctp.InputError, match="another recipe"):
        ctp.learn(llama, web.train, web.validation, replace(SPEC, lr=0.1), state=state, **quiet)


def test_an_interrupt_keeps_the_best(llama, web):
    def impatient(items, *, total=None, label=""):
        for count, item in enumerate(items):
            if count == 6:
                raise KeyboardInterrupt
            yield item

    learned = ctp.learn(llama, web.train, web.validation, SPEC, progress=impatient)
    assert "interrupted" in learned.stopped and learned.best_step == 4


def test_nan_stops_with_the_best_kept(llama, web):
    result = start(llama, SPEC)
    steps = learn_steps(llama, web.train, web.validation, SPEC, result=result)
    for _ in range(5):
        next(steps)
    kept = result.prefix.rows.clone()
    llama.model.norm.weight[0] = float("nan")
    assert list(steps) == [] and "not finite" in result.stopped
    assert torch.equal(result.prefix.rows, kept) and torch.isfinite(kept).all()


def test_kl_to_itself_is_zero_and_needs_a_teacher(llama, web, quiet):
    spec = replace(SPEC, kl=1.0)
    with pytest.raises(ctp.InputError, match="teacher"):
        ctp.learn(llama, web.train, web.validation, spec, **quiet)
    learned = ctp.learn(llama, web.train, web.validation, spec, teacher=llama, **quiet)
    assert all(step.loss >= 0 for step in learned.steps)


def test_learning_through_packed_weights_equals_dense(llama, web, tokenizer, tmp_path, quiet):
    small, report = ctp.compress(llama, web.train.sample(8), ctp.CompressionSpec(bits=4, sparsity=0.5), **quiet)
    ctp.save(tmp_path, small, tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path, packed=True)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    found = [ctp.learn(m, web.train, web.validation, SPEC, **quiet).steps[-1].loss for m in (small, packed)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # fp32 over twelve AdamW steps


def test_the_papers_recipe_is_the_papers():
    spec = ctp.PromptSpec.paper()
    assert (spec.tokens, spec.steps, spec.batch, spec.lr, spec.warmup) == (100, 30_000, 4, 1e-3, 500)
    assert (spec.weight_decay, spec.clip, spec.init, spec.kl) == (1e-5, 1.0, "vocab-random", 0.0)


@pytest.fixture
def saved(llama, web, tokenizer, tmp_path, quiet):
    learned = ctp.learn(llama, web.train, web.validation, SPEC, **quiet)
    ctp.save_prompt(tmp_path / "p", learned, SPEC, llama, tokenizer, base="tiny", tag="full")
    return learned, tmp_path / "p"


def test_prompt_file_round_trip_and_attach(saved, llama, tokenizer):
    learned, folder = saved
    prompt = ctp.load_prompt(folder)
    assert torch.equal(prompt.prefix.rows, learned.prefix.rows)
    assert prompt.prefix.rows.dtype == torch.float32
    assert prompt.info["spec"] == SPEC.to_json() and len(prompt.info["curve"]) == 12
    assert ctp.attach(prompt, llama, tokenizer) == []


def test_wrong_models_are_refused_in_one_line(saved, llama, tokenizer):
    from conftest import tiny
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    prompt = ctp.load_prompt(saved[1])
    with pytest.raises(ctp.InputError, match="width 32, the model 16"):
        ctp.attach(prompt, tiny("opt"), tokenizer)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ctp.InputError, match="another tokenizer"):
        ctp.attach(prompt, llama, other)
    assert "another base model" in ctp.attach(prompt, tiny("neox"), tokenizer)[0]
    unknown = files.SavedPrompt(prompt.prefix, prompt.initial, {})
    with pytest.raises(ctp.InputError, match="--force"):
        ctp.attach(unknown, llama, tokenizer)
    assert ctp.attach(unknown, llama, tokenizer, force=True)


def test_truncated_prompts_are_refused(saved):
    folder = saved[1]
    tensors = folder / "prompt.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:40])
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.load_prompt(folder)
    (folder / "prompt.json").unlink()
    with pytest.raises(ctp.InputError, match="no finished prompt"):
        ctp.load_prompt(folder)
