"""Geometry: every measure on data with a known answer, and hidden states against one dense forward each."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from scipy import stats

from enigma.llm.states import StateReader, greedy_completions
from enigma.method.geometry import (
    anisotropy,
    classifier_hits,
    displacement_share,
    effective_rank,
    fisher_rao,
    intrinsic_dimension,
    jackknife_interval,
    linear_cka_debiased,
    participation_ratio,
    permutation_p,
    principal_angles,
    random_subsets,
    span_basis,
    subset_shares,
    variance_ratio,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def rotation(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def centred_basis(rng, n, d):
    """Orthonormal columns (n, d) of mean zero."""
    x = rng.standard_normal((n, d))
    return np.linalg.qr(x - x.mean(0))[0]


# ---- distributions -------------------------------------------------------------------------------------------------


def test_fisher_rao_of_coins():
    # On the sphere of square roots the coin (p, 1 - p) stands at the angle arccos sqrt p.
    for p, q in ((0.5, 0.5), (0.9, 0.1), (0.3, 0.30001), (0.999999, 0.2)):
        expected = 2 * abs(math.acos(math.sqrt(p)) - math.acos(math.sqrt(q)))
        logits = [torch.tensor([r, 1 - r], dtype=torch.float64).log() for r in (p, q)]
        assert fisher_rao(*logits).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_fisher_rao_is_a_distance_up_to_pi_and_takes_half_precision():
    apart = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]])
    assert fisher_rao(apart[0], apart[1]).item() == pytest.approx(math.pi, rel=1e-3)
    assert fisher_rao(apart[0], apart[0]).item() == 0
    a, b, c = torch.randn(3, 20, 100, generator=torch.Generator().manual_seed(0))
    assert (fisher_rao(a, a + 7) < 1e-5).all()
    assert (fisher_rao(a, c) <= fisher_rao(a, b) + fisher_rao(b, c) + 1e-6).all()
    half = fisher_rao(a.bfloat16(), b.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half, fisher_rao(a.bfloat16().double(), b.bfloat16().double()).float(), rtol=1e-5)


# ---- clouds --------------------------------------------------------------------------------------------------------


def test_debiased_cka_equals_the_cosine_of_u_centred_distances(rng):
    """Independently: distance correlation's U-centring (Szekely and Rizzo 2014) on squared distances."""

    def u_centred(x):
        d, n = scipy.spatial.distance.cdist(x, x, "sqeuclidean"), len(x)
        a = d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / ((n - 1) * (n - 2))
        return a[~np.eye(n, dtype=bool)]

    x = rng.standard_normal((15, 4))
    y = x @ rng.standard_normal((4, 7)) + rng.standard_normal((15, 7)) + 20
    a, b = u_centred(x), u_centred(y)
    assert linear_cka_debiased(x, y) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert linear_cka_debiased(x, 3 * x @ rotation(rng, 4) + 5) == pytest.approx(1)


@pytest.mark.parametrize("measure", [effective_rank, participation_ratio])
def test_ranks_where_all_eigenvalues_are_equal(measure, rng):
    basis = centred_basis(rng, 60, 5)
    assert measure(basis @ rotation(rng, 5)) == pytest.approx(5)
    assert measure(basis[:, :1]) == pytest.approx(1)
    wide = basis @ np.linalg.qr(rng.standard_normal((200, 5)))[0].T
    assert measure(wide + 100) == pytest.approx(5)


def test_ranks_of_two_eigenvalues(rng):
    x = centred_basis(rng, 30, 2) * [math.sqrt(3), 1]
    assert effective_rank(x) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert participation_ratio(x) == pytest.approx(16 / 10)
    assert math.isnan(effective_rank(np.ones((4, 3)))) and math.isnan(participation_ratio(np.ones((4, 3))))


def test_anisotropy(rng):
    assert anisotropy([[1.0, 0.0], [-1.0, 0.0]]) == pytest.approx(-1)
    x = rng.standard_normal((7, 3))
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.mean([units[i] @ units[j] for i in range(7) for j in range(7) if i != j])
    assert anisotropy(x) == pytest.approx(expected)


def test_principal_angles_are_those_of_the_singular_vectors(rng):
    """Fewer points than dimensions, rows of mean exactly zero: a starting vector of ones would be lost in them."""
    half = rng.integers(-9, 9, (2, 10, 40)) * np.arange(40, 0, -1)
    x, y = (np.concatenate([points, -points]) for points in half)
    axes = [np.linalg.svd(cloud)[2][:3] for cloud in (x, y)]
    expected = np.arccos(np.clip(np.linalg.svd(axes[0] @ axes[1].T)[1], -1, 1))[::-1]
    np.testing.assert_allclose(principal_angles(x, y + 3, 3), expected, atol=1e-6)
    whole = rng.standard_normal((9, 6))
    assert principal_angles(whole, whole + 3, 6) == pytest.approx(np.zeros(6), abs=1e-6)


@pytest.mark.parametrize("dimension", [2, 5])
def test_intrinsic_dimension_of_an_embedded_cube(dimension, rng):
    flat = rng.random((600, dimension)) @ np.linalg.qr(rng.standard_normal((40, dimension)))[0].T
    found = intrinsic_dimension(np.concatenate([flat, flat[:50]]))
    assert found == pytest.approx(dimension, rel=0.15)
    assert found == intrinsic_dimension(flat)


def test_variance_ratio_by_hand():
    # Class means 1 and 5 about 3, each row 1 away from its own.
    assert variance_ratio([[0.0], [2.0], [4.0], [6.0]], [0, 0, 1, 1]) == pytest.approx(16 / 4)
    assert math.isnan(variance_ratio([[0.0], [2.0]], [0, 1]))


def test_classifier_tells_apart_what_can_be_told_and_nothing_else(rng):
    labels, groups = np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3)
    x = rng.standard_normal((60, 30))
    assert abs(classifier_hits(x, labels, groups).mean() - 1 / 3) < 0.2
    x[np.arange(60), labels] += 10
    assert classifier_hits(x, labels, groups).mean() > 0.9


def test_classifier_does_not_see_the_group_it_is_asked_about(rng):
    # Every group has its own code for the labels, so nothing carries over to another group.
    codes = rng.standard_normal((20, 3, 40))
    x = np.concatenate([codes[:, label] for label in range(3) for _ in range(2)])
    labels, groups = np.repeat([0, 1, 2], 40), np.tile(np.arange(20), 6)
    assert classifier_hits(x, labels, groups).mean() < 0.55


# ---- displacement and directions -----------------------------------------------------------------------------------


def test_span_basis_drops_dependent_directions(rng):
    directions = rng.standard_normal((2, 9))
    basis = span_basis(np.concatenate([directions, directions[:1] * 2]))
    assert basis.shape == (9, 2)
    assert basis.T @ basis == pytest.approx(np.eye(2), abs=1e-12)
    assert ((directions @ span_basis(directions)).sum(0) > 0).all()


def test_shares_of_subsets_are_those_of_an_explicit_projection(rng):
    directions, displacement = rng.standard_normal((6, 20)), rng.standard_normal((9, 20))
    directions[5] = 2 * directions[0] - directions[1]  # dependent within some subsets
    subsets = np.array(list(combinations(range(6), 3)))
    bases = [scipy.linalg.orth(directions[subset].T) for subset in subsets]
    expected = [((displacement @ basis) ** 2).sum() / (displacement**2).sum() for basis in bases]
    assert subset_shares(displacement, directions, subsets) == pytest.approx(np.array(expected))
    assert displacement_share(displacement, directions[subsets[3]]) == pytest.approx(expected[3])
    assert displacement_share(directions[:2], directions) == pytest.approx(1)
    nothing = np.zeros((2, 20))
    assert math.isnan(displacement_share(nothing, directions))
    assert math.isnan(displacement_share(displacement, nothing))


def world(rng, planted=0.0):
    """A displacement of prompts and the directions of 16 principles, all dominated by the same few axes.

    So it is in a language model: changes of weights and of prompts share directions. `planted` moves every prompt along
    the first four principles.
    """
    spread = np.concatenate([[20.0, 8.0, 4.0], np.ones(57)])
    directions = rng.standard_normal((16, 60)) * spread + 2 * spread
    displacement = rng.standard_normal((12, 60)) * spread + spread
    return displacement + planted * rng.standard_normal((12, 4)) @ directions[:4], directions


def test_permutation_p_value_is_uniform_where_nothing_is_to_be_found():
    p_values = []
    for seed in range(400):
        displacement, directions = world(np.random.default_rng(seed))
        null = subset_shares(displacement, directions, random_subsets(16, 4, 199, seed))
        p_values.append(permutation_p(displacement_share(displacement, directions[:4]), null))
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


def test_permutation_p_value_counts_ties_and_finds_a_planted_direction(rng):
    assert permutation_p(2.0, [1.0, 2.0, 3.0]) == 0.75
    assert permutation_p(2.0 + 1e-12, [1.0, 2.0, 3.0]) == 0.75
    assert permutation_p(9.0, np.zeros(99)) == 0.01
    displacement, directions = world(rng, planted=5.0)
    null = subset_shares(displacement, directions, random_subsets(16, 4, 999, 0))
    # One subset in 1820 is the own.
    assert permutation_p(displacement_share(displacement, directions[:4]), null) <= 0.003


# ---- intervals, input ----------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_the_classical_interval(rng):
    values, owner = rng.standard_normal(8), np.arange(8)
    plain = jackknife_interval(lambda keep: values[keep].mean(), owner)
    low, high = stats.t.interval(0.95, 7, values.mean(), values.std(ddof=1) / math.sqrt(8))
    assert plain == pytest.approx((values.mean(), low, high))
    # Of a positive statistic it is that of the logarithm; ends are cut to what the statistic can be.
    positive = jackknife_interval(lambda keep: math.exp(values[keep].mean()), owner, positive=True)
    assert positive == pytest.approx(np.exp(plain))
    cut = jackknife_interval(lambda keep: values[keep].mean(), owner, support=(plain.value, math.inf))
    assert cut == (plain.value, plain.value, plain.high)


@pytest.mark.parametrize("measure", [participation_ratio, anisotropy])
def test_jackknife_covers_the_truth(measure):
    """Tokens of one prompt are alike: the 95 % interval is over prompts."""

    def cloud(rng, prompts):
        x = np.repeat(rng.standard_normal((prompts, 10)), 8, axis=0) + rng.standard_normal((8 * prompts, 10))
        return (x + 0.7) / np.sqrt(np.arange(1, 11)), np.repeat(np.arange(prompts), 8)

    truth, covered = measure(cloud(np.random.default_rng(0), 4000)[0]), 0
    for seed in range(1, 101):
        x, owner = cloud(np.random.default_rng(seed), 16)
        positive = measure is participation_ratio
        interval = jackknife_interval(lambda keep, x=x: measure(x[keep]), owner, positive=positive)
        covered += interval.low <= truth <= interval.high
    assert covered >= 85


def test_jackknife_leaves_whole_units_out():
    owner, seen = np.repeat(np.arange(20), 3), []

    def statistic(keep):
        seen.append(keep)
        return 0.0

    jackknife_interval(statistic, owner)
    assert seen[0].all()
    for keep in seen[1:]:
        assert set(owner[keep]).isdisjoint(owner[~keep])
    assert (sum((~keep).astype(int) for keep in seen[1:]) == 1).all()
    assert len(seen) == 9
    assert math.isnan(jackknife_interval(statistic, np.zeros(5)).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank(np.zeros(3)), "x: shape"),
        (lambda: effective_rank([[np.nan, 1.0]]), "x: holds NaN"),
        (lambda: linear_cka_debiased(np.zeros((3, 2)), np.zeros((3, 2))), "at least 4"),
        (lambda: linear_cka_debiased(np.zeros((5, 2)), np.zeros((6, 2))), "5 and 6 rows"),
        (lambda: principal_angles(np.eye(3), np.eye(3), 4), "k: found 4"),
        (lambda: displacement_share(np.zeros((0, 3)), np.eye(3)), "displacement: shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- reading states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 5])
def test_states_equal_one_dense_forward_each(toy_model, prefix):
    model = toy_model().eval()
    prompts = [[7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 11, 20, 21, 22]]
    completions = [[30, 31, 32, 33], [40, 41]]
    reader = StateReader(model, prompts[0][:prefix], [1, 2])
    for _ in range(2):  # reading leaves the shared beginning as it was
        read = list(reader.read(prompts, completions, logits=True))
        for prompt, completion, (hidden, logits) in zip(prompts, completions, read, strict=True):
            with torch.no_grad():
                dense = model(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True)
            expected = torch.stack([dense.hidden_states[i][0, len(prompt) :] for i in (1, 2)])
            assert torch.allclose(hidden, expected, atol=1e-5)
            assert torch.allclose(logits, dense.logits[0, len(prompt) - 1 : -1], atol=1e-4)


def test_greedy_completions_are_the_argmax_and_stop_at_the_end(toy_model, toy_tokenizer):
    model = toy_model().eval()
    prompts = [[7, 8, 9], [20, 21, 22, 23, 24]]
    found = greedy_completions(model, toy_tokenizer, prompts, 6, 2)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in completion:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)
    third = found[0][2]
    model.generation_config.eos_token_id = [third, toy_tokenizer.eos_token_id]
    stopped = greedy_completions(model, toy_tokenizer, prompts[:1], 6, 2)[0]
    assert stopped == found[0][: found[0].index(third) + 1]
