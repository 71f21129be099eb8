"""The neighbours' equations on small cases that were worked out by hand or by another route."""

import math

import numpy as np
import pytest
import torch

from enigma.llm.optimisers import Scion, build, orthogonalised
from enigma.llm.steering import draw, steering_weights
from enigma.method.complexity import lempel_ziv_bits, lempel_ziv_phrases, matched_bits
from enigma.method.infomec import infomec, told_apart
from enigma.method.transport import sinkhorn_divergence, squared_distance

# ---- optimisers


@pytest.mark.parametrize("shape", [(16, 60), (60, 16)])
def test_newton_schulz_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ vt.T
    values = inner.diagonal()
    assert (inner - values.diag()).abs().max() < 1e-3
    assert 0.6 < values.min() and values.max() < 1.3
    assert orthogonalised(torch.zeros(shape)).abs().max() == 0


def test_a_scion_step_has_the_spectral_norm_that_it_asks_for_and_follows_the_momentum():
    weight = torch.nn.Parameter(torch.zeros(12, 3))
    first, second = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(1))
    optimiser = Scion([weight], lr=0.01, momentum=0.1, radius=2.0)
    weight.grad = first
    optimiser.step()
    # sqrt(12 / 3) = 2, so each step is 0.01 * 2 * 2 times an almost orthogonal matrix, however small the gradient.
    assert torch.allclose(weight, -0.04 * orthogonalised(first), atol=1e-5)
    before, weight.grad = weight.detach().clone(), second
    optimiser.step()
    momentum = 0.9 * 0.1 * first + 0.1 * second
    assert torch.allclose(weight - before, -0.04 * orthogonalised(momentum), atol=1e-5)


@pytest.mark.parametrize("name", ["scion", "muon"])
def test_an_optimiser_takes_what_is_trained_and_goes_downhill(name):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False))
    model[1].requires_grad_(False)
    optimiser, x, losses = build(name, model, 0.05), torch.randn(32, 4), []
    assert [len(group["params"]) for group in optimiser.param_groups] == [1]
    for _ in range(20):
        losses.append((model(x) - 1).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert build("adamw", model, 0.05) is None


# ---- model steering


def test_steering_weights_are_the_closed_form_and_shuffled_ones_a_permutation():
    weights = steering_weights([0.9, 0.5, 0.5], [0.4, 0.5, 0.7], tau=0.5)
    expected = [math.exp(1.0), 1.0, math.exp(-0.4)]
    assert weights == pytest.approx(np.array(expected) / sum(expected))
    assert steering_weights([1, 0], [0, 1], 1e-3) == pytest.approx([1, 0])  # no overflow
    assert draw(["a", "b"], [1.0, 0.0], seed=0) == ["a", "a"]
    assert {draw(list(range(50)), np.eye(50)[7], seed=s, shuffled=True)[0] for s in range(5)} != {7}
    many = draw(list(range(4)) * 5000, np.tile([0.1, 0.2, 0.3, 0.4], 5000) / 5000, seed=1)
    assert np.bincount(many) / len(many) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)


# ---- Lempel-Ziv


def test_lempel_ziv_phrases_of_the_classical_example():
    assert lempel_ziv_phrases("0001101001000101") == 6  # 0 001 10 100 1000 101
    assert [lempel_ziv_phrases(text) for text in ("", "a", "aaaa", "abab", "abc")] == [0, 1, 2, 3, 3]
    assert lempel_ziv_bits("0001101001000101") == 6 * 4 / 16
    assert lempel_ziv_bits("") == lempel_ziv_bits("a") == 0  # a model that falls silent still has a row


def test_lempel_ziv_bits_near_the_entropy_rate_and_zero_for_a_loop():
    coin = "".join(map(str, np.random.default_rng(0).integers(0, 2, 20_000)))
    assert lempel_ziv_bits(coin) == pytest.approx(1, abs=0.1)
    assert lempel_ziv_bits("no news " * 2500) < 0.02
    long, short = matched_bits([coin, coin], [coin[:4000]])
    assert long == short


# ---- InfoMEC


def infomec_of(code):
    """Of two random bits and their linear code, with little noise."""
    rng = np.random.default_rng(0)
    sources = rng.integers(0, 2, (400, 2))
    latents = sources @ np.array(code)
    return infomec(latents + 0.01 * rng.normal(size=latents.shape), sources)


def test_infomec_of_codes_with_a_known_answer():
    assert infomec_of([[1, 0], [0, 1]]) == pytest.approx((1, 1, 1), abs=0.1)
    # Source 0 in two of three dimensions: (1/2 - 1/3) / (1 - 1/3) = 1/4; source 1 in one: 1; their mean 5/8.
    shared = infomec_of([[1, 1, 0], [0, 0, 1]])
    assert shared.modularity == pytest.approx(1, abs=0.1)
    assert shared.compactness == pytest.approx(5 / 8, abs=0.05)
    # Sum and difference: each tells both alike, so modularity is 0, and a line still reads either.
    mixed = infomec_of([[1, 1], [1, -1]])
    assert mixed.modularity < 0.15 and mixed.compactness < 0.15 and mixed.explicitness > 0.85


def test_principles_are_told_apart_where_states_differ_by_them_and_not_in_noise():
    rng = np.random.default_rng(2)
    prompts = rng.normal(size=(1, 16, 6)) * 10  # what a prompt adds to all is taken away
    noise = rng.normal(size=(3, 16, 6)) + prompts
    *_, (name, *_, p_value) = told_apart(noise + 6 * np.eye(6)[:3, None], 9)
    assert (name, p_value) == ("explicitness", 1 / 10)
    *_, (_, value, *_, p_value) = told_apart(noise, 19)
    assert value < 0.1 and p_value > 1 / 20
    with pytest.raises(ValueError, match="one value"):
        infomec(noise[0], np.zeros((16, 2)))


# ---- the plain rival of the Sinkhorn term


def test_squared_distance_by_hand_and_its_gradient():
    """y's mean cost over all pairs is (0 + 4 + 4 + 0) / 2^2 = 2; the points moved by 1 and 3: (1 + 9) / 2 / 2."""
    y = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True)
    found = squared_distance(x, y)
    found.backward()
    assert found.item() == pytest.approx(2.5)
    assert torch.allclose(x.grad, torch.tensor([[0.0, 0.5], [0.0, 1.5]]))
    # Tokens that change places leave the cloud, and the divergence, as they were.
    assert squared_distance(y.flip(0), y) == 2 and sinkhorn_divergence(y.flip(0), y) < 1e-6
