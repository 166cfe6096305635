"""Codes learned through their rounding, one by one or by low-rank updates: the gradient, no change at first, the same
bytes and masks, folded, resumed."""

from dataclasses import replace

import pytest
import torch
from commands import refused, run_json
from conftest import interrupted_at, tiny

import ctplab as ctp
from ctplab.compression.packing import full_codes, kept_of, pack_bits
from ctplab.disk import data_dir
from ctplab.formats import checkpoint
from ctplab.formats.tuned import changes_between, fold, grids
from ctplab.learning import codes, fused
from ctplab.learning.codes import EDGE, SIZE, Codes
from ctplab.learning.step import Gradient
from ctplab.learning.tuned import Tuned
from ctplab.learning.updates import low_rank_codes
from ctplab.learning.windows import Windows
from ctplab.prompts.head import halves
from ctplab.recording import NeverWaiting

SPEC = ctp.PromptSpec(steps=8, batch=4, lr=4.0, warmup=2, evaluate_every=4, validation_windows=4)
LEVELS = {
    "w3": ctp.CompressionSpec(bits=3),
    "w3-g8-ao": ctp.CompressionSpec(bits=3, group_size=8, act_order=True),
    "w4-s50": ctp.CompressionSpec(bits=4, sparsity=0.5),
    "s62.5": ctp.CompressionSpec(sparsity=0.625),
}
#: Scales, norms and kept values are stored in half precision: 2^-11 relative each, over a few layers of width 32.
STORED = 2e-2


@pytest.fixture
def compressed(web, tokenizer, quiet, tmp_path):
    """compressed(family, spec) -> the folder and the model loaded from it."""

    def made(family, spec, name="small", seed=0):
        small, report = ctp.compress(tiny(family), web.train.sample(8, seed=seed), spec, **quiet)
        ctp.save(small, tmp_path / name, tokenizer, report, "tiny")
        return tmp_path / name, ctp.load(tmp_path / name, device="cpu", dtype="float32")[0]

    return made


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def random_codes(kept=False, double=False):
    """Codes of 3 bits in two groups of mixed columns, two of each row at the ends of the grid."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(0, 8, (5, 6), generator=generator, dtype=torch.uint8)
    c[:, 0], c[:, 1] = 0, 7
    scale = torch.rand(5, 2, generator=generator, dtype=torch.float64 if double else torch.float32) + 0.5
    zero = torch.randint(0, 8, (5, 2), generator=generator).to(scale)
    mask = torch.rand(5, 6, generator=generator) < 0.6 if kept else None
    group = torch.tensor([0, 1, 1, 0, 1, 0])
    if mask is not None:
        c = torch.where(mask, c, zero[:, group].to(torch.uint8))
    return Codes(c, scale, zero, group, mask, 7)


@pytest.mark.parametrize("kept", [False, True])
def test_the_gradient_is_that_of_a_straight_line_inside_the_grid(kept):
    one = random_codes(kept)
    u = (torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) / SIZE).requires_grad_(True)
    weight = one.weight(u, torch.float32)
    way = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    (weight * way).sum().backward()
    free = torch.ones(5, 6, dtype=torch.bool) if one.kept is None else one.kept
    code = torch.round(one.codes + SIZE * u.detach() * free)
    assert torch.equal(weight.detach(), one.scale[:, one.group] * (code.clamp(0, 7) - one.zero[:, one.group]))
    inside = (code >= 0) & (code <= 7)
    assert not inside.all() and (code != one.codes).any()
    expected = way * one.scale[:, one.group] * SIZE * (inside & free)
    torch.testing.assert_close(u.grad, expected, rtol=1e-6, atol=0)  # three products in fp32
    assert kept == (~free & (u.detach() != 0)).any() and (weight[~free] == 0).all()


def test_the_straight_line_has_that_slope_by_finite_differences():
    """The line itself, c + size·u cut off at the grid's ends, in float64."""
    one = random_codes(kept=True, double=True)
    u = torch.rand(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    u = torch.where(one.codes == 7, -u, u).requires_grad_(True)  # into the grid

    def line(u):
        assert one.kept is not None
        code = (one.codes + SIZE * u * one.kept).clamp(0, one.maxq)
        return one.scale[:, one.group] * (code - one.zero[:, one.group])

    assert torch.autograd.gradcheck(line, u)
    way = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slopes = [torch.autograd.grad((made(u) * way).sum(), u)[0] for made in (line, lambda u: one.weight(u, u.dtype))]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", [False, True])
def test_a_cpu_works_on_few_rows_at_a_time(kept, monkeypatch):
    one = random_codes(kept)
    u = (torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) / SIZE).requires_grad_(True)
    way = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    found = []
    for tile in (1 << 16, 12, 1):  # all rows, two, one
        monkeypatch.setattr(codes, "TILE", tile)
        weight = one.weight(u, torch.bfloat16)
        found.append((weight.detach(), torch.autograd.grad(weight, u, way.to(weight.dtype))[0]))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_gradient_of_low_rank_updates_is_the_product_rule():
    """The gradient on u is tested above; here it is passed on to B and A."""
    small = random_codes()
    assert small.group is not None
    parts = {"shape": torch.tensor([5, 6]), "codes": pack_bits(small.codes, 3), "scale": small.scale}
    parts |= {"zero": small.zero.to(torch.uint8), "group": small.group.int()}
    right = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    update = low_rank_codes("x", parts, 3, torch.zeros(5, 6), None, right)
    left, moved = update.parameters["left:x"], update.parameters["right:x"]
    for p, seed in ((left, 4), (moved, 5)):
        p.copy_(4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))).requires_grad_(True)
    way = torch.randn(5, 6, generator=torch.Generator().manual_seed(6))
    (update.change(torch.zeros(5, 6)) * way).sum().backward()
    whole = right + moved.detach() / 6**0.5
    u = (left.detach() @ whole).requires_grad_(True)
    (grad,) = torch.autograd.grad((small.weight(u, torch.float32) * way).sum(), u)
    assert left.grad is not None and moved.grad is not None and grad.any()
    torch.testing.assert_close(left.grad, grad @ whole.T)  # fp32, other orders of the sums
    torch.testing.assert_close(moved.grad, left.detach().T @ grad / 6**0.5)
    assert torch.equal(update.found({n: p.detach() for n, p in update.parameters.items()})["code:x"], small.steps(u))


@pytest.mark.parametrize("kind", ["codes", "low-rank"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "level"), [("llama", level) for level in LEVELS] + [("gpt2", "w3")])
def test_without_a_change_it_is_the_compressed_model_to_the_bit(family, level, dtype, kind, compressed):
    folder, _ = compressed(family, LEVELS[level])
    model = ctp.load(folder, device="cpu", dtype=dtype)[0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = Tuned(model, folder, (kind, "scales", "norms"), full=tiny(family))
    assert all(p.dtype == torch.float32 for p in tuned.parameters.values())
    for name, weight in before.items():
        owner, _, own = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(owner), own), weight), name
    tuned.remove()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "level"), [("llama", "w3-g8-ao"), ("gpt2", "w4-s50")])
def test_codes_start_where_the_full_weights_lie_in_their_cells(family, level, dtype, compressed):
    folder, _ = compressed(family, LEVELS[level])
    model, full = ctp.load(folder, device="cpu", dtype=dtype)[0], tiny(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = Tuned(model, folder, ("codes",), full=full)
    for name, weight in before.items():  # no code has moved
        owner, _, own = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(owner), own), weight), name
    outside, inside, bits = 0, 0, LEVELS[level].bits or 0
    for unit, parts in grids(folder, codes=True).items():
        layer = full.get_submodule(unit)
        weight = (layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T).detach().double()
        group = parts["group"].long() if "group" in parts else torch.zeros(weight.shape[1], dtype=torch.long)
        scale, zero = (parts[name].double()[:, group] for name in ("scale", "zero"))
        wanted = weight / scale + zero - full_codes(parts, bits)
        kept = kept_of(parts) if "mask" in parts else torch.ones_like(wanted, dtype=torch.bool)
        found = SIZE * tuned.parameters[f"code:{unit}"].detach().double()
        near = kept & (wanted.abs() < EDGE)
        torch.testing.assert_close(found[near], wanted[near], rtol=0, atol=1e-5)  # fp32, of values up to 15
        assert (found[kept & ~near].abs() - EDGE).abs().max() < 1e-6 and (found[~kept] == 0).all()
        assert ((found > 0) == (wanted > 0))[kept].all()
        outside, inside = outside + int((kept & ~near).sum()), inside + int(near.sum())
    assert outside > 0 and inside > 0


def test_a_teacher_without_such_weights_leaves_codes_in_the_middle(compressed):
    folder, model = compressed("llama", LEVELS["w3"])
    wider = tiny("llama")
    for unit in grids(folder, codes=True):
        wider.set_submodule(unit, torch.nn.Linear(40, 40))
    for other in (tiny("gpt2"), wider, None):
        tuned = Tuned(model, folder, ("codes",), full=other)
        assert all(not p.any() for p in tuned.parameters.values())
        tuned.remove()


def test_a_grid_of_one_value_has_no_cells():
    one = random_codes()
    flat = replace(one, scale=torch.zeros_like(one.scale), zero=one.zero * 0, codes=one.codes * 0)
    assert torch.equal(flat.start(torch.zeros(5, 6)), torch.zeros(5, 6))


@pytest.mark.parametrize("what", [("codes",), ("low-rank",), ("scales", "norms", "codes")])
@pytest.mark.parametrize(("family", "level"), [("llama", level) for level in LEVELS] + [("gpt2", "w4-s50")])
def test_folded_equals_learned_in_the_same_bytes(family, level, what, compressed, web, tmp_path):
    folder, model = compressed(family, LEVELS[level])
    bits, ids = LEVELS[level].bits, web.test.windows[:2]
    plain, tuned = logits(model, ids), Tuned(model, folder, what)
    with torch.no_grad():
        for name, p in tuned.parameters.items():
            size = 1 / SIZE if name.startswith(("code", "value")) else 6.0 if bits and what == ("low-rank",) else 0.5
            p += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    changed = logits(model, ids)
    changes = tuned.frozen(dict(tuned.parameters)).tensors
    manifest = fold(folder, tmp_path / "out", changes, {"what": list(what)})
    again = logits(ctp.load(tmp_path / "out", device="cpu", dtype="float32")[0], ids)
    exact = bits is not None and "scales" not in what
    assert (changed - plain).abs().max() > 5 * STORED * float(changed.std())
    torch.testing.assert_close(again, changed, rtol=0, atol=0 if exact else STORED * float(changed.std()))
    before = checkpoint.read_manifest(folder)
    assert manifest["bytes"] == before["bytes"]
    assert manifest["tag"].rpartition("-")[0] == "+".join([before["tag"], *what])
    for path in folder.glob("*.safetensors"):
        old, new = (checkpoint.read_tensors(place / path.name) for place in (folder, tmp_path / "out"))
        assert {n: (t.dtype, t.shape) for n, t in old.items()} == {n: (t.dtype, t.shape) for n, t in new.items()}
        fixed = [name for name in old if name.partition("::")[2] in ("mask", "zero", "group", "shape")]
        assert all(torch.equal(old[name], new[name]) for name in fixed)
        for unit, parts in checkpoint.parts_of(new).items():
            first = checkpoint.parts_of(old)[unit]
            if bits is None:
                assert not torch.equal(parts["values"], first["values"])
                continue
            moved = full_codes(parts, bits).int() - full_codes(first, bits)
            assert torch.equal(moved.to(torch.int16), changes[f"code:{unit}"]) and moved.any()


def test_a_step_never_asks_the_device(compressed, web):
    for level in ("w4-s50", "s62.5"):
        folder, model = compressed("llama", LEVELS[level], level)
        tuned = Tuned(model, folder, ("scales", "norms", "codes"))
        for p in tuned.parameters.values():
            p.grad = torch.zeros_like(p)
        gradient = Gradient.of(tuned, halves(model), Windows.of(web.train, torch.device("cpu")), SPEC, None)
        expected = gradient(torch.arange(4), 4 * 47)
        with NeverWaiting("cpu"):
            found = gradient(torch.arange(4), 4 * 47)
        assert torch.equal(found, expected)
        assert all(p.grad is not None and p.grad.any() for p in tuned.parameters.values())


def test_fused_layers_give_all_kinds_their_gradient(compressed, web):
    pytest.importorskip("triton")
    folder, model = compressed("llama", LEVELS["w3"])
    tuned = Tuned(model, folder, ("scales", "norms", "codes"))
    for p in tuned.parameters.values():
        p.grad = torch.zeros_like(p)
    plain = Gradient.of(tuned, halves(model), Windows.of(web.train, torch.device("cpu")), SPEC, None)
    found = []
    for gradient in (plain, replace(plain, fused=fused.Fused(fused.find(model)))):
        gradient(torch.arange(2), 2 * 47)
        found.append([p.grad.clone() for p in tuned.parameters.values() if p.grad is not None])
    assert all(gradient.any() for gradient in found[1])
    for mine, expected in zip(found[1], found[0], strict=True):  # fp32, other orders of the same products
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("level", ["w3-g8-ao", "s62.5"])
def test_learning_gets_better_and_resumes(level, compressed, web, quiet, tmp_path):
    folder, model = compressed("llama", LEVELS[level])
    state = tmp_path / "state.safetensors"
    settings = (model, folder, ("codes",), web.train, web.validation, SPEC)
    whole = ctp.learn_tuned(*settings, **quiet)
    assert whole.best_step > 0 and whole.best_validation < whole.before

    assert ctp.learn_tuned(*settings, state=state, progress=interrupted_at(5)).stopped
    resumed = ctp.learn_tuned(*settings, state=state, **quiet)
    assert [s.loss for s in resumed.steps] == [s.loss for s in whole.steps]
    assert all(torch.equal(resumed.prefix.tensors[n], t) for n, t in whole.prefix.tensors.items())


@pytest.mark.parametrize("level", ["w3", "s62.5"])
def test_codes_and_values_do_not_carry_over(level, compressed, tmp_path):
    folder, model = compressed("llama", LEVELS[level])
    tuned = Tuned(model, folder, ("codes",))
    with torch.no_grad():
        for p in tuned.parameters.values():
            p += 10 / SIZE * torch.randn(p.shape, generator=torch.Generator().manual_seed(4))
    changes = tuned.frozen(dict(tuned.parameters)).tensors
    fold(folder, tmp_path / "out", changes, {"what": ["codes"]})
    with pytest.raises(ctp.InputError, match=r"other (codes|values) of .*: only scales and norms carry over"):
        changes_between(folder, tmp_path / "out")
    if level == "w3":
        other, _ = compressed("llama", LEVELS[level], "other", seed=1)
        with pytest.raises(ctp.InputError, match="learned on another copy"):
            fold(other, tmp_path / "no", changes, {"what": ["codes"]})


def test_the_command_learns_codes(capsys, tmp_path):
    home, out = data_dir() / "w4-s55", tmp_path / "tuned"
    command = ("tune", home, "--what", "scales,codes", "--steps", "2", "--batch", "2", "--seq-len", "32", "--out", out)
    found = run_json(capsys, *command, "--lr", "3")
    manifest = checkpoint.read_manifest(out)
    assert found["bytes"] == manifest["bytes"] == checkpoint.read_manifest(home)["bytes"]
    assert manifest["tag"].startswith("w4-s55+scales+codes-")
    assert run_json(capsys, "score", out, "--windows", "2", "--seq-len", "32")["corpora"]["atlas-web"]["ppl"] > 1
    unit, parts = next(iter(grids(home, codes=True).items()))
    steps = -(full_codes(parts, 4).short() * kept_of(parts)).clamp(max=1)
    fold(home, tmp_path / "moved", {f"code:{unit}": steps}, {"what": ["codes"], "from": str(home)})
    likewise = ("tune", home, "--like", tmp_path / "moved", "--out", tmp_path / "likewise")
    assert f"other codes of {unit}" in refused(capsys, *likewise)
