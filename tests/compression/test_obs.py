"""The solver against exact least squares, and against the baselines that it must beat."""

import itertools
import sys

import pytest
import torch

import ctplab as ctp
from ctplab.compression.factor import cholesky_of_inverse, factor, inverse_upper
from ctplab.compression.grid import fit
from ctplab.compression.obs import output_loss, solve
from ctplab.models.anatomy import blocks, linears
from ctplab.specs import CompressionSpec


def problem(rows=24, columns=64, tokens=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = mix @ torch.randn(columns, tokens, generator=generator)
    W = torch.randn(rows, columns, generator=generator)
    return W, X, 2 * X @ X.T / tokens


def output_error(W, W_hat, X):
    return float((((W - W_hat) @ X) ** 2).sum())


def test_the_worked_example_of_the_docstring():
    """w = (0.6, 0.6) on whole numbers: the solver gives (1, 0), rounding (1, 1)."""
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    U = cholesky_of_inverse(H)
    assert torch.allclose(U, torch.tensor([[0.816, -0.408], [0.0, 0.707]]), atol=1e-3)  # as printed there
    w = torch.tensor([0.6, 0.6])
    err = (w[0] - 1) / U[0, 0]
    assert (float(err), float(w[1] - err * U[0, 1])) == pytest.approx((-0.49, 0.4), abs=1e-3)
    loss = [float((w - v) @ H @ (w - v)) for v in (torch.tensor([1.0, 0.0]), torch.ones(2))]
    assert loss == pytest.approx([0.56, 0.96])
    # The solver itself: a third column of weight 3, apart from the others, makes the row's 2-bit grid 0, 1, 2, 3.
    wide = 2 * torch.eye(3)
    wide[:2, :2] = H
    found = solve(torch.tensor([[0.6, 0.6, 3.0]]), wide, CompressionSpec(bits=2, damp=1e-6))
    assert found.W_hat.tolist() == [[1.0, 0.0, 3.0]]


def test_factor_is_the_upper_cholesky_factor_of_the_inverse():
    _, _, H = problem()
    H = H.double() + 0.1 * torch.eye(64)
    U = cholesky_of_inverse(H)
    reference = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    # float64, condition about 1e3: twelve digits minus the condition
    torch.testing.assert_close(U, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [1, 5, 64, 97])
def test_triangular_inverse_by_halves(n, monkeypatch):
    monkeypatch.setattr(sys.modules["ctplab.compression.factor"], "LEAF", 8)
    R = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu() / n
    R.diagonal().abs_().add_(1)
    inverse = inverse_upper(R)
    # float64, condition below 100
    torch.testing.assert_close(inverse @ R, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(inverse, inverse.triu())


def test_output_loss_is_the_error_of_the_outputs():
    W, X, H = problem(rows=3, columns=600, tokens=50)  # more columns than it takes at a time
    W_hat = W.round()
    # fp32 sums over 600 columns
    assert output_loss(W, W_hat, H) == pytest.approx(output_error(W.double(), W_hat, X.double()) / 50, rel=1e-4)


def test_pruning_one_column_is_exact_least_squares():
    """With one weight removed and no damping, the survivors must be the exact constrained optimum (float64)."""
    W, X, H = problem(rows=1, columns=6, tokens=40)
    spec = CompressionSpec(sparsity=0.01, damp=1e-9)  # int(6 * 0.01) + 1 = one weight a block
    found = solve(W, H, spec)
    pruned = found.mask[0].nonzero().flatten().tolist()
    assert len(pruned) == 1
    free = [i for i in range(6) if i > pruned[0]]  # columns before it are fixed already
    fixed = [i for i in range(6) if i < pruned[0]]
    w, Xd = W[0].double(), X.double()
    target = w @ Xd - w[fixed] @ Xd[fixed]
    best = torch.linalg.lstsq(Xd[free].T, target[:, None]).solution[:, 0] if free else torch.zeros(0)
    # kept weights are stored in half precision: 2^-11 relative
    torch.testing.assert_close(found.W_hat[0, free].double(), best.double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_quantisation_is_exact_least_squares_column_by_column(seed):
    """Independent float64 recursion: fix a column on the grid, re-solve the free ones by least squares, go on."""
    W, X, H = problem(rows=1, columns=8, tokens=64, seed=seed)
    grid = fit(W, 3)
    w, Xd = W[0].double().clone(), X.double()
    target = w @ Xd
    for i in range(8):
        w[i] = grid.decode(grid.encode(w[i].float().view(1, 1))).double()
        if i < 7:
            rest = target - w[: i + 1] @ Xd[: i + 1]
            w[i + 1 :] = torch.linalg.lstsq(Xd[i + 1 :].T, rest[:, None]).solution[:, 0]
    found = solve(W, H, CompressionSpec(bits=3, damp=1e-7))
    # the same grid points: only fp32 noise may differ, far below half a step
    torch.testing.assert_close(found.W_hat[0].double(), w, rtol=0, atol=0.01 * float(grid.scale))


def test_no_coding_beats_the_exhaustive_optimum_and_greedy_beats_rounding_on_average():
    """d = 4, 2 bits: all 256 codings by brute force."""
    greedy, rounding = 0.0, 0.0
    for seed in range(20):
        W, X, H = problem(rows=1, columns=4, tokens=64, seed=seed)
        grid = fit(W, 2)
        codings = (torch.tensor([codes], dtype=torch.float32) for codes in itertools.product(range(4), repeat=4))
        best = min(output_error(W, grid.decode(coding), X) for coding in codings)
        error = output_error(W, solve(W, H, CompressionSpec(bits=2, damp=1e-6)).W_hat, X)
        assert best <= error * (1 + 1e-6)
        greedy += error
        rounding += output_error(W, grid.decode(grid.encode(W)), X)
    assert greedy < rounding


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3},
        {"bits": 4, "group_size": 16},
        {"bits": 3, "act_order": True},
        {"bits": 4, "symmetric": True},
        {"sparsity": 0.5},
        {"pattern": "2:4"},
        {"bits": 4, "sparsity": 0.5},
    ],
    ids=lambda s: CompressionSpec(**s).tag,
)
def test_reported_loss_is_the_output_error(settings):
    W, X, H = problem()
    found = solve(W, H, CompressionSpec(**settings))
    # fp32 sums over 24 x 256 outputs
    assert output_loss(W, found.W_hat, H) == pytest.approx(output_error(W, found.W_hat, X) / X.shape[1], rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 16, 64])
def test_gptq_beats_rounding(bits, group):
    W, X, H = problem()
    found = solve(W, H, CompressionSpec(bits=bits, group_size=group))
    pieces = W.split(group or W.shape[1], 1)
    rounded = torch.cat([fit(p, bits).decode(fit(p, bits).encode(p)) for p in pieces], 1)
    assert output_error(W, found.W_hat, X) < output_error(W, rounded, X)


@pytest.mark.parametrize("sparsity", [0.5, 0.625, 0.75])
def test_the_update_repairs_what_the_mask_breaks(sparsity):
    W, X, H = problem()
    found = solve(W, H, CompressionSpec(sparsity=sparsity))
    assert output_error(W, found.W_hat, X) < output_error(W, W.masked_fill(found.mask, 0), X)
    assert found.mask.float().mean() == pytest.approx(sparsity, abs=0.01)


@pytest.mark.parametrize("sparsity", [0.5, 0.625, 0.75])
def test_sparsegpt_beats_magnitude_on_real_layers(sparsity, tokenizer, web):
    """Every linear of the embedded model, on its real inputs. (Random matrices have no structure to exploit.)"""
    model, _ = ctp.load("atlas", device="cpu")
    layers = {n: m for _, block in blocks(model) for n, m in linears(block).items()}
    inputs = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].flatten(0, 1)}))
    with torch.no_grad():
        model(web.train.sample(16))
    for name, layer in layers.items():
        W, X = layer.weight.detach(), inputs[name].T
        found = solve(W, 2 * X @ X.T / X.shape[1], CompressionSpec(sparsity=sparsity))
        threshold = W.abs().flatten().sort().values[int(W.numel() * sparsity)]
        assert output_error(W, found.W_hat, X) < output_error(W, W.masked_fill(W.abs() <= threshold, 0), X), name


def test_joint_keeps_pruned_weights_zero_and_the_rest_on_the_grid():
    W, _, H = problem()
    found = solve(W, H, CompressionSpec(bits=4, sparsity=0.5))
    assert torch.equal(found.W_hat[found.mask], torch.zeros(int(found.mask.sum())))
    decoded = found.scale * (found.codes.float() - found.zero)
    torch.testing.assert_close(found.W_hat, decoded, rtol=0, atol=1e-6)  # the same product, in another order


def test_pattern_leaves_n_zeros_in_every_m():
    W, _, H = problem()
    found = solve(W, H, CompressionSpec(pattern="2:4"))
    assert (found.mask.view(24, 16, 4).sum(2) == 2).all()


def test_block_size_does_not_change_the_codes():
    W, _, H = problem()
    codes = [solve(W, H, CompressionSpec(bits=3, block=block)).codes for block in (8, 32, 128)]
    # lazy updates only regroup fp32 sums; a code may flip where a value sits on a rounding edge
    assert all((codes[0] != other).float().mean() < 0.005 for other in codes[1:])


def test_stacked_layers_solve_as_each_alone():
    W, _, H = problem()
    spec = CompressionSpec(bits=4, sparsity=0.5)
    together = solve(W, H, spec, (8, 16))
    alone = [solve(part, H, spec) for part in W.split([8, 16])]
    assert torch.equal(together.mask, torch.cat([s.mask for s in alone]))
    assert torch.equal(together.codes, torch.cat([s.codes for s in alone]))


def test_symmetric_grid_covers_rows_without_negatives():
    w = torch.rand(3, 50) + 0.01
    grid = fit(w, 4, symmetric=True)
    assert (w - grid.decode(grid.encode(w))).abs().max() <= 0.51 * grid.scale.max()


def test_ladder_and_fallback_are_reported():
    W, _, _ = problem()
    broken = -torch.eye(64)
    U, why = factor(broken, 0.01)
    assert U is None and "positive definite" in why
    found = solve(W, broken, CompressionSpec(bits=4))
    assert "round-to-nearest" in found.fallback
    grid = fit(W, 4)
    assert torch.equal(found.codes.float(), grid.encode(W))


def test_dead_inputs_are_removed():
    W, X, _ = problem()
    X[5] = 0
    found = solve(W, 2 * X @ X.T / X.shape[1], CompressionSpec(bits=4))
    assert torch.equal(found.W_hat[:, 5], torch.zeros(24)) and torch.isfinite(found.W_hat).all()


def test_the_search_shrinks_the_range_where_that_errs_less():
    W, _, _ = problem(rows=64, columns=128)

    def error(grid):
        return (grid.decode(grid.encode(W)) - W).abs().pow(2.4).sum(1)

    plain, searched = fit(W, 2), fit(W, 2, mse=True)
    assert (error(searched) <= error(plain)).all() and error(searched).sum() < 0.8 * error(plain).sum()


def test_the_reference_clips_symmetric_rows_without_negatives_and_we_do_not():
    w = torch.linspace(0.01, 0.99, 50)[None]
    ours, theirs = fit(w, 4, symmetric=True), fit(w, 4, symmetric=True, reference=True)
    assert ours.decode(ours.encode(w)).max() > 0.9
    assert theirs.decode(theirs.encode(w)).max() < 0.5


def test_static_groups_keep_neighbours_together_under_act_order():
    W, _, H = problem()
    spec = CompressionSpec(bits=4, group_size=16, act_order=True, static_groups=True)
    found = solve(W, H, spec)
    assert torch.equal(found.group, torch.arange(64) // 16)
    grids = [fit(part, 4) for part in W.split(16, 1)]
    assert torch.equal(found.scale, torch.cat([g.scale for g in grids], 1))
    dynamic = solve(W, H, CompressionSpec(bits=4, group_size=16, act_order=True))
    assert not torch.equal(dynamic.group, found.group)


def test_fresh_grids_of_small_groups_lose_less_than_the_references_stale_ones():
    """Groups of 16 in blocks of 128: the reference fits them on weights that lack the block's own updates."""
    ours = theirs = 0.0
    for seed in range(5):
        W, X, H = problem(rows=48, columns=128, tokens=512, seed=seed)
        settings = {"bits": 3, "group_size": 16}
        ours += output_error(W, solve(W, H, CompressionSpec(**settings)).W_hat, X)
        theirs += output_error(W, solve(W, H, CompressionSpec(**settings, reference=True)).W_hat, X)
    assert ours < theirs


@pytest.mark.parametrize("block", [5, 48, 100])
@pytest.mark.parametrize("extra", [{"group_size": 32, "bits": 4}, {"pattern": "2:4"}, {"pattern": "4:8", "bits": 4}])
def test_odd_block_sizes_cut_neither_groups_nor_patterns(block, extra):
    W, _, H = problem(columns=128)
    found = solve(W, H, CompressionSpec(block=block, **extra))
    if "pattern" in extra:
        n, m = CompressionSpec(**extra).n_m
        assert (found.mask.view(24, -1, m).sum(2) == n).all()
    if found.scale is not None and "group_size" in extra:
        assert found.scale.shape == (24, 4)
    assert torch.isfinite(found.W_hat).all()
