"""Scales, norms and kept values: gradients, folded equals learned, the same codes and bytes, killed and resumed."""

import re

import pytest
import torch
from commands import refused, run, run_json
from conftest import interrupted_at, tiny

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats import checkpoint
from ctplab.formats.tuned import changes_between, fold
from ctplab.learning.tuned import Tuned
from ctplab.models.fingerprints import base_fingerprint, copy_fingerprint, tokenizer_fingerprint
from ctplab.progress import silent
from ctplab.prompts import prefix

SPEC = ctp.PromptSpec(steps=8, batch=4, lr=0.03, warmup=2, evaluate_every=4, validation_windows=4)
LEVELS = {
    "w3-g8": (ctp.CompressionSpec(bits=3, group_size=8), ("scales", "norms")),
    "w3-g8-ao": (ctp.CompressionSpec(bits=3, group_size=8, act_order=True), ("scales",)),
    "w4-s50": (ctp.CompressionSpec(bits=4, sparsity=0.5), ("scales", "norms")),
    "s62.5": (ctp.CompressionSpec(sparsity=0.625), ("scales", "norms", "low-rank")),
}
#: Scales, norms and kept values are stored in half precision: 2^-11 relative each, over a few layers of width 32.
STORED = 2e-2


@pytest.fixture
def compressed(web, tokenizer, quiet, tmp_path):
    """compressed(model, spec) -> the folder and the model loaded from it."""

    def made(model, spec):
        small, report = ctp.compress(model, web.train.sample(8), spec, **quiet)
        ctp.save(small, tmp_path / "small", tokenizer, report, "tiny")
        return tmp_path / "small", ctp.load(tmp_path / "small", device="cpu", dtype="float32")[0]

    return made


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("level", LEVELS)
def test_folded_equals_learned_and_nothing_else_changes(family, level, compressed, web, tmp_path):
    spec, what = LEVELS[level]
    folder, model = compressed(tiny(family), spec)
    ids, before = web.test.windows[:2], model.state_dict()
    plain = logits(model, ids)
    tuned = Tuned(model, folder, what)
    torch.testing.assert_close(logits(model, ids), plain, rtol=1e-5, atol=1e-5)  # no change yet
    with torch.no_grad():
        for p in tuned.parameters.values():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 2
    changed = logits(model, ids)
    changes = tuned.frozen(dict(tuned.parameters)).tensors
    manifest = fold(folder, tmp_path / "out", changes, {"what": list(what)})
    again = logits(ctp.load(tmp_path / "out", device="cpu", dtype="float32")[0], ids)
    assert (changed - plain).abs().max() > 5 * STORED * float(changed.std())
    torch.testing.assert_close(again, changed, rtol=0, atol=STORED * float(changed.std()))
    assert manifest["bytes"] == checkpoint.read_manifest(folder)["bytes"]
    for path in folder.glob("*.safetensors"):
        old, new = checkpoint.read_tensors(path), checkpoint.read_tensors(tmp_path / "out" / path.name)
        assert {n: (t.dtype, t.shape) for n, t in old.items()} == {n: (t.dtype, t.shape) for n, t in new.items()}
        for name, tensor in old.items():
            if name.partition("::")[2] in ("codes", "mask", "zero", "group", "shape"):
                assert torch.equal(tensor, new[name]), name
    tuned.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("level", ["w3-g8", "s62.5"])
def test_gradients_are_those_of_finite_differences(level, compressed, web):
    spec, what = LEVELS[level]
    folder, model = compressed(tiny("gpt2"), spec)  # LLaMA's norms compute in fp32 whatever the dtype
    model.double()
    tuned, ids = Tuned(model, folder, what), web.test.windows[:1, :12]
    for p in tuned.parameters.values():
        p.data = p.data.double() + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).double()

    def loss():
        return torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])

    loss().backward()
    for name, p in tuned.parameters.items():
        way, h = torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double(), 1e-5
        with torch.no_grad():
            p += h * way
            up = loss()
            p -= 2 * h * way
            down = loss()
            p += h * way
        wanted = float((up - down) / (2 * h))
        # float64 losses of about 10 are off by 2e-15 each, so 1e-10 after the division; the formula by some h^2 = 1e-10
        assert float((p.grad * way).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-8), name


def test_learning_gets_better_resumes_and_leaves_the_model(compressed, web, quiet, tmp_path):
    folder, model = compressed(tiny("llama"), LEVELS["w3-g8"][0])
    before, state = [p.clone() for p in model.parameters()], tmp_path / "state.safetensors"
    settings = (model, folder, ("scales", "norms"), web.train, web.validation, SPEC)
    whole = ctp.learn_tuned(*settings, **quiet)
    assert whole.best_step > 0 and whole.best_validation < next(s.loss for s in whole.steps)

    assert ctp.learn_tuned(*settings, state=state, progress=interrupted_at(5)).stopped
    resumed = ctp.learn_tuned(*settings, state=state, **quiet)
    assert [s.loss for s in resumed.steps] == [s.loss for s in whole.steps]
    assert all(torch.equal(resumed.prefix.tensors[n], t) for n, t in whole.prefix.tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_kinds_that_do_not_fit_are_refused(compressed):
    folder, model = compressed(tiny("llama"), LEVELS["w3-g8"][0])
    with pytest.raises(ctp.InputError, match="one or more of scales, norms, low-rank"):
        Tuned(model, folder, ["rows"])
    with pytest.raises(ctp.InputError, match="both codes and low-rank move the codes"):
        Tuned(model, folder, ["low-rank", "codes"])
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_the_command_writes_a_folder_once(capsys, tmp_path):
    home, out = data_dir() / "w4-s55", tmp_path / "tuned"
    command = ("tune", home, "--steps", "3", "--batch", "2", "--seq-len", "32", "--out", out)
    assert "needs --teacher" in refused(capsys, *command, "--objective", "kl")
    found = run_json(capsys, *command)
    manifest = checkpoint.read_manifest(out)
    assert found["bytes"] == manifest["bytes"] == checkpoint.read_manifest(home)["bytes"]
    assert manifest["tuned"]["what"] == ["scales", "norms"] and len(manifest["tuned"]["curve"]) == 3
    assert run_json(capsys, *command)["validation"] == found["validation"]  # done already
    assert "tuned otherwise" in refused(capsys, *command, "--what", "norms")
    assert "is no tuned model" in refused(capsys, *command[:-1], home)
    likewise = ("tune", home, "--like", out, "--out", tmp_path / "likewise")
    assert run_json(capsys, *likewise)["bytes"] == run_json(capsys, *likewise)["bytes"] == found["bytes"]
    assert "tuned otherwise" in refused(capsys, *likewise[:-1], out)
    assert "no model that 'ctplab tune' made" in refused(capsys, *likewise[:2], "--like", home, "--out", tmp_path / "x")
    assert run_json(capsys, "score", out, "--windows", "2", "--seq-len", "32")["corpora"]["atlas-web"]["ppl"] > 1
    recover = ("recover", "--full", "atlas", "--compressed", home, "--prompt", data_dir() / "prompt", "--skip")
    recover += ("full+own,lora", "--windows", "2", "--seq-len", "32", "--out", tmp_path / "runs", "--tuned")
    arms = run_json(capsys, *recover, out)["corpora"]["atlas-web"]
    assert arms["scales+norms"]["n_tokens"] == arms["soft"]["n_tokens"] == 62
    assert "no model that 'ctplab tune' made" in refused(capsys, *recover, home)


def test_a_prompt_learned_with_the_changes_is_what_lies_beside_them(compressed, web, tokenizer, quiet, tmp_path):
    """Rows and changes of one loop: each moves, and the folder with its prompt gives the validation that was seen."""
    folder, model = compressed(tiny("llama"), LEVELS["w3-g8"][0])
    start = prefix.random_rows(model, 5, name="init")
    settings = (model, folder, ("scales",), web.train, web.validation, SPEC)
    learned = ctp.learn_tuned(*settings, prompt=start, **quiet)
    assert not torch.equal(learned.prefix.prefix.rows, start.rows) and "E" not in learned.prefix.tensors
    assert any((m != 1).any() for m in learned.prefix.tensors.values())
    fold(folder, tmp_path / "out", learned.prefix.tensors, {"what": ["scales", "soft"]})
    changed = ctp.load(tmp_path / "out", device="cpu", dtype="float32")[0]
    found = ctp.perplexity(ctp.Arm("x", changed, learned.prefix.prefix), web.validation.windows[:4])
    # scales are stored in half precision, 2^-11 relative
    assert found.nll / found.n_tokens == pytest.approx(learned.best_validation, rel=STORED)


def test_changes_between_two_folders_are_those_that_were_folded(compressed, tokenizer, tmp_path):
    folder, model = compressed(tiny("llama"), LEVELS["w3-g8"][0])
    tuned = Tuned(model, folder, ("scales", "norms"))
    with torch.no_grad():
        for p in tuned.parameters.values():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) / 2
    changes = tuned.frozen(dict(tuned.parameters)).tensors
    fold(folder, tmp_path / "first", changes, {"what": ["scales", "norms"]})
    found = changes_between(folder, tmp_path / "first")
    assert set(found) == set(changes)
    for name, change in changes.items():
        torch.testing.assert_close(found[name], change, rtol=2**-9, atol=1e-4)  # scales and norms in half precision
    fold(folder, tmp_path / "second", found, {"what": ["scales", "norms"]})
    for path in (tmp_path / "first").glob("*.safetensors"):
        once, twice = (checkpoint.read_tensors(tmp_path / name / path.name) for name in ("first", "second"))
        for name, tensor in once.items():  # a factor is rounded to fp32, its product again to half precision
            torch.testing.assert_close(twice[name].float(), tensor.float(), rtol=2**-10, atol=1e-7)
    windows = torch.arange(96).view(2, 48)
    other, report = ctp.compress(tiny("llama"), windows, ctp.CompressionSpec(bits=3), progress=silent)
    ctp.save(other, tmp_path / "other", tokenizer, report, "tiny")
    with pytest.raises(ctp.InputError, match="scales here, the changes"):
        fold(tmp_path / "other", tmp_path / "third", found, {"what": ["scales"]})
    with pytest.raises(ctp.InputError, match="other tensors"):
        changes_between(tmp_path / "other", tmp_path / "first")


def test_every_tuning_has_an_identity_of_its_own(compressed, web, tokenizer, tmp_path):
    """Tags and fingerprints tell equal kinds of changes apart, and attaching a prompt of one to the other says so.

    Loaded in another dtype it is the same copy, and the folder that was tuned keeps the fingerprint that prompts hold.
    """
    folder, model = compressed(tiny("llama"), LEVELS["w3-g8"][0])
    tuned = Tuned(model, folder, ("scales",))
    ones = tuned.frozen(dict(tuned.parameters)).tensors
    tuned.remove()
    made = {}
    for name, factor in (("a", 1.1), ("b", 1.2), ("again", 1.1)):
        changes = {unit: factor * m for unit, m in ones.items()}
        tag = fold(folder, tmp_path / name, changes, {"what": ["scales"]})["tag"]
        assert re.fullmatch(r"w3-g8\+scales-[0-9a-f]{6}", tag)
        loaded = [ctp.load(tmp_path / name, device="cpu", dtype=dtype)[0] for dtype in ("float32", "bfloat16")]
        (copy,) = {copy_fingerprint(each) for each in loaded}
        made[name] = (tag, copy)
    assert made["a"] == made["again"] and len({copy for _, copy in made.values()} | {copy_fingerprint(model)}) == 3
    assert made["a"][0] != made["b"][0]
    twice = fold(tmp_path / "a", tmp_path / "twice", ones, {"what": ["scales"]})
    assert twice["tag"].startswith(f"{made['a'][0]}+scales-")
    assert copy_fingerprint(ctp.load(tmp_path / "twice", device="cpu")[0]) not in [copy for _, copy in made.values()]
    info = {"base_fingerprint": base_fingerprint(model), "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    saved = ctp.SavedPrompt(prefix.random_rows(model, 3), None, info | {"copies": [made["a"][1]]})
    first, second = (ctp.load(tmp_path / name, device="cpu")[0] for name in "ab")
    assert ctp.attach(saved, first, tokenizer) == []
    assert "another compression" in ctp.attach(saved, second, tokenizer)[0]


def test_a_study_keeps_what_it_tuned(web, tokenizer, tmp_path, monkeypatch):
    full = tiny("llama")
    study = ctp.Study(ctp.Store(tmp_path, "tiny"), full, tokenizer, silent)
    small, _ = study.compressed(LEVELS["w3-g8"][0], web.train.sample(8))
    settings = ("w3-g8", small, ("scales",), web.train, web.validation, SPEC)
    start = prefix.random_rows(small, 3, name="init")
    made = [study.tuned(*settings), study.tuned(*settings, prompt=start)]
    assert [arm.name for arm in made] == ["scales", "scales+soft"] and [arm.prefix.k for arm in made] == [0, 3]
    monkeypatch.setattr("ctplab.runs.study.learn_tuned", lambda *_, **__: pytest.fail("learned twice"))
    again = [study.tuned(*settings), study.tuned(*settings, prompt=start)]
    assert [arm.fingerprint for arm in again] == [arm.fingerprint for arm in made]
    assert made[0].fingerprint != ctp.Arm("x", small, prefix.none(small)).fingerprint


def test_prompts_and_tuned_models_together_on_the_command_line(capsys, tmp_path):
    home, joint, plain, later = data_dir() / "w4-s55", tmp_path / "joint", tmp_path / "plain", tmp_path / "later"
    few = ("--steps", "2", "--batch", "2", "--seq-len", "32")
    command = ("tune", home, *few, "--what", "scales,norms,soft", "--tokens", "5", "--out", joint)
    assert "'ctplab learn' learns" in refused(capsys, *command, "--what", "soft")
    assert "--hidden needs --teacher" in refused(capsys, *command, "--hidden", "0.5")
    cached = ("--teacher", "atlas", "--teacher-cache", tmp_path / "kept")
    assert "leave --teacher-cache out" in refused(capsys, *command, "--hidden", "0.5", *cached)
    run_json(capsys, *command)
    assert run_json(capsys, *command)["steps"] == 2  # done already
    run_json(capsys, "tune", home, *few, "--hidden", "0.5", "--teacher", "atlas", "--out", plain)
    run_json(capsys, "learn", plain, *few, "--tokens", "5", "--out", later)
    saved = ctp.load_prompt(joint / "prompt")
    assert saved.info["tag"].startswith("w4-s55+scales+norms+soft-") and saved.prefix.k == 5
    code, out, err = run(capsys, "score", plain, "--prompt", later, "--windows", "2", "--seq-len", "32")
    assert code == 0 and "note" not in err and "soft on atlas-web" in out  # its own level: nothing to say
    _, _, err = run(capsys, "score", home, "--prompt", later, "--windows", "2", "--seq-len", "32")
    assert f"learned on {checkpoint.read_manifest(plain)['tag']} and is used on w4-s55" in err
    recover = ("recover", "--full", "atlas", "--compressed", home, "--prompt", data_dir() / "prompt", "--skip")
    recover += ("full+own,lora", "--windows", "2", "--seq-len", "32", "--out", tmp_path / "runs", "--times")
    run_json(capsys, "tune", home, "--like", plain, "--out", tmp_path / "carried")  # fp32 factors: other numbers
    found = run_json(capsys, *recover[:-1], "--tuned", plain, tmp_path / "carried")
    tags = [checkpoint.read_manifest(folder)["tag"] for folder in (plain, tmp_path / "carried")]
    assert {tag.removeprefix("w4-s55+") for tag in tags} <= set(found["corpora"]["atlas-web"]) and tags[0] != tags[1]
    found = run_json(capsys, *recover, "--tuned", joint, plain, "--tuned-prompt", later)
    assert {"scales+norms", "scales+norms+soft", "scales+norms, then soft"} <= set(found["corpora"]["atlas-web"])
    paid = found["costs"]
    assert (paid["scales+norms"]["bytes"], paid["scales+norms"]["positions"]) == (0, 0)
    assert (paid["scales+norms, then soft"]["bytes"], paid["scales+norms+soft"]["positions"]) == (5 * 256 * 2, 5)
    assert set(paid["soft"]["read_ms"]) == {"median", "low", "high"} and "full" not in paid
    assert "the levels of --tuned are: none" in refused(capsys, *recover, "--tuned", joint, "--tuned-prompt", later)
