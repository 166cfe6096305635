"""Learning changes E only, follows the gradient, resumes, and never loses the best."""

import hashlib
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import MORE_FAMILIES, from_config, interrupted_at, tiny
from safetensors.torch import load_file, save_file

import ctplab as ctp
from ctplab import disk, tensor_files
from ctplab.compression.linear import PackedLinear
from ctplab.disk import data_dir
from ctplab.learning.objective import mixed_loss
from ctplab.learning.rows import learn_steps, start
from ctplab.learning.schedule import Validations, validations
from ctplab.models.anatomy import embed
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import halves

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


def step_loss(model, rows, ids):
    targets = ids[:, 1:].flatten()
    cut = halves(model)
    states = cut.states(compile_rows(model, rows), ids)[:, :-1].flatten(0, 1)
    return mixed_loss(states, cut.head, 2048, targets) / len(targets)


@pytest.mark.parametrize("family", ["opt", "neox", "gpt2"])  # the others run norms or softmax in fp32 in any model
def test_the_gradient_is_the_finite_difference_in_float64(family, web):
    model, ids = tiny(family).double(), web.train.windows[:2]
    rows = prefix.random_rows(model, 3).rows.double().requires_grad_(True)
    step_loss(model, rows, ids).backward()
    step = 1e-5
    for i, j in ((0, 0), (1, 7), (2, 15)):
        nudge = torch.zeros_like(rows)
        nudge[i, j] = step
        with torch.no_grad():
            numeric = (step_loss(model, rows + nudge, ids) - step_loss(model, rows - nudge, ids)) / (2 * step)
        # third derivatives times step², and 1e-16 · 8 nats / step
        assert float(rows.grad[i, j]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-8)


SLIDING = {"MistralConfig": MORE_FAMILIES["MistralConfig"] | {"sliding_window": 16}}
OTHERS = {name: c for name, c in MORE_FAMILIES.items() if "oe" not in name and name != "MixtralConfig"}  # no float64


@pytest.mark.parametrize("name, config", [*OTHERS.items(), *SLIDING.items()])
def test_step_loss_and_gradient_are_those_of_concatenation(name, config, web):
    model, ids = from_config(getattr(transformers, name)(**config)).double(), web.train.windows[:2]
    rows = prefix.random_rows(model, 3).rows.double().requires_grad_(True)
    ours = step_loss(model, rows, ids)
    (gradient,) = torch.autograd.grad(ours, rows)
    joined = torch.cat([rows.expand(2, -1, -1), embed(model, ids)], 1)
    logits = model(inputs_embeds=joined, use_cache=False).logits[:, 3:-1]
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    # some norms and the rotary tables are fp32 in a float64 model
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, rows)[0], rtol=1e-5, atol=1e-6)
    assert model.config._attn_implementation in ("sdpa", "eager")  # as it was


def test_same_seed_same_bits(llama, web, quiet):
    runs = [ctp.learn(llama, web.train, web.validation, SPEC, **quiet) for _ in range(2)]
    assert torch.equal(runs[0].prefix.rows, runs[1].prefix.rows)
    other = ctp.learn(llama, web.train, web.validation, replace(SPEC, seed=1), **quiet)
    assert not torch.equal(runs[0].prefix.rows, other.prefix.rows)


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/learning"]
from pathlib import Path
from conftest import tiny
import ctplab as ctp
from test_learn import SPEC
from ctplab.learning.rows import learn_steps

web = ctp.corpus("atlas-web", ctp.load_tokenizer({tokenizer!r}), seq_len=48)
for step in learn_steps(tiny("llama"), web.train, web.validation, SPEC, state=Path({state!r})):
    if step.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_resumed_gives_the_same_curve(llama, web, tmp_path, quiet):
    """Killed outright between two validations: it goes on from step 8."""
    whole = ctp.learn(llama, web.train, web.validation, SPEC, **quiet)
    state = tmp_path / "state.safetensors"
    code = KILLED.format(tests=str(Path(__file__).parents[1]), tokenizer=str(data_dir() / "model"), state=str(state))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    resumed = ctp.learn(llama, web.train, web.validation, SPEC, state=state, **quiet)
    assert torch.equal(resumed.prefix.rows, whole.prefix.rows)
    assert [(s.step, s.loss, s.validation) for s in resumed.steps] == [
        (s.step, s.loss, s.validation) for s in whole.steps
    ]


def test_a_disk_without_room_for_the_state_is_told_before_learning(llama, web, tmp_path, quiet, monkeypatch):
    """A first save, and one beside it that replaces it: four fp32 numbers a value each."""
    learn = (llama, web.train, web.validation, replace(SPEC, steps=2, evaluate_every=1))
    need, state = 16 * SPEC.tokens * 32, tmp_path / "state.safetensors"
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * need - 1))
    with pytest.raises(ctp.InputError, match="MB are free"):
        ctp.learn(*learn, state=state, **quiet)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * need))
    ctp.learn(*learn, state=state, **quiet)
    assert state.stat().st_size == pytest.approx(need, abs=3000)  # the recipe and the curve as JSON
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    ctp.learn(*learn, state=state, **quiet)


def test_a_state_of_another_run_or_a_damaged_one_is_not_trusted(llama, web, tmp_path, quiet, caplog):
    """Learning begins anew, as if there were no state; another run's work is moved aside, not lost."""
    short = replace(SPEC, steps=4, evaluate_every=2)
    state = tmp_path / "state.safetensors"

    def learned(train, spec):
        caplog.clear()
        return ctp.learn(llama, train, web.validation, spec, state=state, **quiet).prefix.rows

    fresh = learned(web.train, short)
    kept = state.read_bytes()
    learned(web.train, replace(short, lr=0.1))
    assert "another recipe" in caplog.text and kept in [path.read_bytes() for path in tmp_path.iterdir()]
    learned(web.test, replace(short, lr=0.1))
    assert "another corpus" in caplog.text
    tensors, about = tensor_files.read_sealed(state)
    for record in ({"step": -3}, {"step": 10**9}):
        save_file(tensors, state, metadata={"ctplab": json.dumps({"about": about | record, "seal": "0" * 16})})
        assert torch.equal(learned(web.train, short), fresh) and "begins anew" in caplog.text
    for damage in (kept[:-1] + b"\x7f", kept[:100], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        state.write_bytes(damage)
        assert torch.equal(learned(web.train, short), fresh) and "begins anew" in caplog.text
    state.write_bytes(kept)
    assert torch.equal(learned(web.train, short), fresh) and not caplog.text
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    learned(web.train, short)
    assert "another model" in caplog.text


def test_interrupted_before_its_first_validation_there_is_no_prompt(llama, web):
    """The untrained rows are no result: nothing of them is kept under the name of one."""
    with pytest.raises(KeyboardInterrupt):
        ctp.learn(llama, web.train, web.validation, replace(SPEC, evaluate_every=8), progress=interrupted_at(2))


def test_patience_stops_early_and_keeps_the_best(llama, web, quiet):
    spec = replace(SPEC, steps=60, evaluate_every=2, patience=3)
    learned = ctp.learn(llama, web.train, web.validation, replace(spec, lr=1e-20), **quiet)  # too small to move E
    assert learned.stopped == "stopped after 6 steps: 3 validations without a better one"
    assert len(learned.steps) == 6 and torch.equal(learned.prefix.rows, learned.initial.rows)
    steps = ctp.learn(llama, web.train, web.validation, replace(spec, steps=12), **quiet).steps
    assert len(steps) == 12  # it still gets better


def test_pieces_of_a_batch_give_the_whole_batchs_curve(llama, web, quiet):
    whole = ctp.learn(llama, web.train, web.validation, SPEC, **quiet)
    pieces = ctp.learn(llama, web.train, web.validation, replace(SPEC, accumulate=3), **quiet)
    # fp32 gradients summed in another order, through twelve AdamW steps
    assert [s.loss for s in pieces.steps] == pytest.approx([s.loss for s in whole.steps], rel=1e-4)


def test_rows_and_optimiser_stay_fp32_through_a_bfloat16_model(web, tmp_path, quiet):
    model = tiny("llama").bfloat16()
    before = [p.clone() for p in model.parameters()]
    state = tmp_path / "state.safetensors"
    learned = ctp.learn(model, web.train, web.validation, replace(SPEC, lr=1e-5), state=state, **quiet)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    kept = load_file(state)
    assert {t.dtype for t in kept.values()} == {torch.float32}
    moved = (kept["now.E"] - learned.initial.rows).abs()
    # steps far below bfloat16's spacing at these values (2^-8 of them) are not lost
    assert 0 < float(moved.median()) < 2**-8 * float(learned.initial.rows.abs().median())


def test_several_models_share_one_prompt(web, quiet):
    """Trained in turns, validated by the mean; a list of one is that one."""
    one, other = tiny("llama"), tiny("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    learned = ctp.learn([one, other], web.train, web.validation, replace(SPEC, steps=40), **quiet)
    windows = web.validation.windows[:4]
    scores = [ctp.perplexity(ctp.Arm("x", m, learned.prefix), windows) for m in (one, other)]
    # two fp32 summations
    assert sum(s.nll / s.n_tokens for s in scores) / 2 == pytest.approx(learned.best_validation, rel=1e-6)
    for m in (one, other):
        assert ctp.perplexity(ctp.Arm("x", m, learned.prefix), windows).nll < (
            ctp.perplexity(ctp.Arm("init", m, learned.initial), windows).nll
        )
    alone = [ctp.learn(m, web.train, web.validation, SPEC, **quiet) for m in (one, [one])]
    assert torch.equal(alone[0].prefix.rows, alone[1].prefix.rows)
    with pytest.raises(ctp.InputError, match="one vocabulary and width"):
        ctp.learn([one, tiny("opt")], web.train, web.validation, SPEC, **quiet)


def test_inits(llama, web, tokenizer):
    frequent = start(llama, replace(SPEC, init="frequent"), train=web.train).initial
    counts = Counter(web.train.stream.tolist())
    assert [counts[i] for i in frequent.ids] == [n for _, n in counts.most_common(5)]
    assert start(llama, replace(SPEC, init="vocab-first")).initial.ids == (0, 1, 2, 3, 4)
    text = start(llama, replace(SPEC, init="text", init_text="Tulsa"), tokenizer).initial
    torch.testing.assert_close(text.rows, embed(llama, torch.tensor(text.ids)))
    earlier = prefix.random_rows(llama, 3, seed=5)
    again = replace(SPEC, init="prompt")
    assert torch.equal(start(llama, again, earlier=earlier).initial.rows, earlier.rows[[0, 1, 2, 0, 1]])
    assert torch.equal(start(llama, replace(again, tokens=2), earlier=earlier).initial.rows, earlier.rows[:2])
    for spec, missing in ((again, "earlier prompt"), (replace(SPEC, init="frequent"), "training split")):
        with pytest.raises(ctp.InputError, match=missing):
            start(llama, spec)
    with pytest.raises(ctp.InputError, match="width 32"):
        start(tiny("opt"), again, earlier=earlier)


@pytest.mark.parametrize("steps, batch, models", [(1000, 16, 1), (30_000, 4, 1), (100, 4, 3), (12, 4, 1), (400, 64, 2)])
@pytest.mark.parametrize("every", [None, 100])
def test_validation_is_a_tenth_of_the_windows_by_default(steps, batch, models, every):
    spec = ctp.PromptSpec(steps=steps, batch=batch, evaluate_every=every)
    plan = validations(spec, 5000, 500, models)
    trained, validated = steps * batch, plan.count * plan.windows * models
    assert plan.count >= 2 and (validated <= 0.1 * (trained + validated) or plan.windows == 1)
    assert validations(replace(spec, evaluate_every=7, validation_windows=9), 5000, 500) == (Validations(7, 9, steps))


def test_an_interrupt_keeps_the_best(llama, web):
    learned = ctp.learn(llama, web.train, web.validation, SPEC, progress=interrupted_at(6))
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
    ctp.save(small, tmp_path, tokenizer, report, "tiny")
    packed, _ = ctp.load(tmp_path, device="cpu", packed=True)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    found = [ctp.learn(m, web.train, web.validation, SPEC, **quiet).steps[-1].loss for m in (small, packed)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # fp32 over twelve AdamW steps


def test_the_papers_recipe_is_the_papers():
    spec = ctp.PromptSpec.paper()
    assert (spec.tokens, spec.steps, spec.batch, spec.lr, spec.warmup) == (100, 30_000, 4, 1e-3, 500)
    assert (spec.weight_decay, spec.clip, spec.init, spec.kl) == (1e-5, 1.0, "vocab-random", 0.0)


def test_a_step_tells_what_bars_and_apps_show(llama, web):
    steps = list(learn_steps(llama, web.train, web.validation, SPEC))
    assert [s.step for s in steps] == list(range(12)) and all(s.tokens_per_second > 0 for s in steps)
    assert [s.step for s in steps if s.validation is not None] == [3, 7, 11]
    assert "validation" in steps[3].note and "tokens/s" in steps[0].note


def test_too_short_a_context_is_refused(llama, tokenizer):
    long = ctp.corpus("atlas-web", tokenizer, seq_len=1024)
    with pytest.raises(ctp.InputError, match="100 prompt tokens \\+ 1024 text tokens"):
        ctp.learn(llama, long.train, long.validation, ctp.PromptSpec.paper())


@pytest.fixture
def saved(llama, web, tokenizer, tmp_path, quiet):
    learned = ctp.learn(llama, web.train, web.validation, SPEC, **quiet)
    ctp.save_prompt(learned, tmp_path / "p", SPEC, llama, tokenizer, base="tiny", tag="full")
    return learned, tmp_path / "p"


def test_prompt_file_round_trip_and_attach(saved, llama, tokenizer):
    learned, folder = saved
    prompt = ctp.load_prompt(folder)
    assert torch.equal(prompt.prefix.rows, learned.prefix.rows)
    assert prompt.prefix.rows.dtype == torch.float32
    assert prompt.info["spec"] == SPEC.to_json() and len(prompt.info["curve"]) == 12
    assert ctp.attach(prompt, llama, tokenizer) == []


def test_wrong_models_are_refused_in_one_line(saved, llama, tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    prompt = ctp.load_prompt(saved[1])
    with pytest.raises(ctp.InputError, match="width 32, the model 16"):
        ctp.attach(prompt, tiny("opt"), tokenizer)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ctp.InputError, match="another tokenizer"):
        ctp.attach(prompt, llama, other)
    assert "another base model" in ctp.attach(prompt, tiny("neox"), tokenizer)[0]
    unknown = ctp.SavedPrompt(prompt.prefix, prompt.initial, {})
    with pytest.raises(ctp.InputError, match="force=True"):
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
